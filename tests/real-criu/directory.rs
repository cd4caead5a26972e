//! Without any filter: CRIU, the victim and the harness do what the other
//! tests rely on.

use crate::bench::{Bench, skip};
use crate::criu::Image;
use crate::victim::Victim;

#[test]
fn a_tree_goes_on_after_a_dump_to_a_directory() {
    let name = "a_tree_goes_on_after_a_dump_to_a_directory";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    let mut victim = Victim::start(&bench, &[]);
    let images = bench.directory("images");
    bench
        .criu
        .dump(Image::Files, &images, victim.pid(), &[])
        .must_succeed();
    let dumped = victim.reap();
    bench
        .criu
        .restore(Image::Files, &images, &[])
        .must_succeed();
    victim.must_go_on(&dumped);
}

#[test]
fn a_listening_tcp_socket_answers_after_a_restore() {
    let name = "a_listening_tcp_socket_answers_after_a_restore";
    let Some(bench) = Bench::set_up(name) else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--tcp", "--megabytes", "12"]);
    let images = bench.directory("images");
    let mut dump = bench.criu.dump(Image::Files, &images, victim.pid(), &[]);
    if !dump.succeeds() && dump.last_words().contains("Can't get 1:16 opt") {
        // CRIU 4.1.1 asks every socket for SO_PASSCRED.
        skip::<()>(name, "this CRIU can't dump TCP sockets of this kernel");
        return;
    }
    dump.must_succeed();
    let dumped = victim.reap();
    bench
        .criu
        .restore(Image::Files, &images, &[])
        .must_succeed();
    victim.must_go_on(&dumped);
    victim.must_answer_on_tcp(&dumped);
}
