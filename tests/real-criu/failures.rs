//! Dumps that fail: the image is refused, and says so.

use crate::bench::{Bench, skip, wait_for};
use crate::criu::Image;
use crate::pipeline::Pipeline;
use crate::victim::Victim;

/// Fails the test unless the dump's pipeline says that the image is incomplete,
/// and what it left is refused.
fn must_refuse(bench: &Bench, pipeline: &mut Pipeline) {
    assert_eq!(pipeline.status(), 1, "the pipeline's messages:\n{}", pipeline.messages());
    let messages = pipeline.messages();
    assert!(messages.contains("criu-sock-capture: "), "no message, but: {messages:?}");
    let mut verify = Pipeline::start(bench, "verify", "image-extract --verify < image");
    assert_eq!(verify.status(), 1, "image-extract --verify accepts the image");
}

#[test]
fn a_dump_that_criu_aborts_lets_the_tree_go_on() {
    let name = "a_dump_that_criu_aborts_lets_the_tree_go_on";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    let victim = Victim::start(&bench, &["--undumpable", "--megabytes", "12"]);
    let images = bench.directory("images");
    let mut dump = bench.criu.dump(Image::Files, &images, victim.pid(), &[]);
    if dump.succeeds() {
        skip::<()>(name, "this CRIU dumps vsock sockets");
        return;
    }
    victim.must_go_on(&victim.statuses());
}

#[test]
fn a_dump_that_criu_aborts_is_refused() {
    let name = "a_dump_that_criu_aborts_is_refused";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    let victim = Victim::start(&bench, &["--undumpable"]);
    let images = bench.directory("dump");
    let script = "criu-sock-capture -D dump -p 3 3>dump.progress > image";
    let mut pipeline = Pipeline::start(&bench, "dump", script);
    pipeline.wait_for_progress("dump.progress", "socket-init");
    if bench.criu.dump(Image::Stream, &images, victim.pid(), &[]).succeeds() {
        skip::<()>(name, "this CRIU dumps vsock sockets");
        return;
    }
    must_refuse(&bench, &mut pipeline);
    victim.must_go_on(&victim.statuses());
}

#[test]
fn a_dump_whose_criu_is_killed_is_refused() {
    let Some(bench) = Bench::set_up("a_dump_whose_criu_is_killed") else {
        return;
    };
    let victim = Victim::start(&bench, &[]);
    let images = bench.directory("dump");
    // The reader stops after 64 MiB, until `go` is there, and CRIU with it.
    let script = "criu-sock-capture -D dump -p 3 3>dump.progress | {
            head -c 67108864 > image
            : > stalled
            until [ -e go ]; do sleep 0.1; done
            cat >> image
        }";
    let mut pipeline = Pipeline::start(&bench, "dump", script);
    pipeline.wait_for_progress("dump.progress", "socket-init");
    let mut dump = bench.criu.dump(Image::Stream, &images, victim.pid(), &[]);
    wait_for("64 MiB of image", || bench.scratch().join("stalled").exists().then_some(()));
    dump.kill();
    std::fs::write(bench.scratch().join("go"), "").expect("let the reader go on");
    must_refuse(&bench, &mut pipeline);
}
