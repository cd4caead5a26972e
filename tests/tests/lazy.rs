//! `image-serve --lazy` with a stand-in for CRIU: what it refuses before CRIU is
//! started, and what CRIU gets. That memory comes is shown with the real one.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use tempfile::{TempDir, tempdir};
use tests::criu::RestoreClient;
use tests::pipeline::{Filter, Finished, without_call};
use tests::stream::Writer;

const PAGE: usize = 4096;

/// The flags of a pagemap's entry: in the pages image, and there but may come late.
const PRESENT: u64 = 4;
const LATE: u64 = 2 | PRESENT;

/// A pagemap of pages image 1. Each entry has an address and a number, of pages, and flags.
fn pagemap(entries: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut file = b"\x19\x43\x56\x54\x25\x40\x08\x56\x02\0\0\0\x08\x01".to_vec();
    for (page, pages, flags) in entries {
        let mut entry = Vec::new();
        for (tag, value) in [(8, page * PAGE as u64), (16, *pages), (32, *flags), (40, *pages)] {
            entry.push(tag);
            entry.extend(varint(value));
        }
        file.extend((entry.len() as u32).to_le_bytes());
        file.extend(entry);
    }
    file
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn pages(numbers: impl IntoIterator<Item = u8>) -> Vec<u8> {
    numbers.into_iter().flat_map(|number| [number; PAGE]).collect()
}

fn image(pagemap: &[u8], pages: &[u8]) -> Vec<u8> {
    let image = Writer::new().file("pagemap-7.img", pagemap).file("pages-1.img", pages);
    image.file("inventory.img", b"an inventory").image_eof().finish()
}

/// `image-serve --lazy -D DIR`, with the image as a regular file.
fn lazy(dir: &TempDir, image: &[u8]) -> Filter {
    lazily(Filter::new("image-serve"), dir, image)
}

fn lazily(filter: Filter, dir: &TempDir, image: &[u8]) -> Filter {
    let path = dir.path().join("image");
    fs::write(&path, image).expect("write the image");
    let image = fs::File::open(path).expect("open the image");
    filter.args(["--lazy", "-D"]).arg(dir.path()).stdin(image).progress_apart()
}

/// Whether the test's user has memory on demand. It is told so otherwise.
fn is_allowed(name: &str) -> bool {
    let dir = tempdir().expect("a directory");
    let finished = lazy(&dir, b"").start().finish();
    let allowed = !finished.stderr.iter().any(|line| line.contains("userfaultfd: "));
    if !allowed {
        println!("skipped: {name}: {}", finished.stderr.join("\n"));
    }
    allowed
}

fn files_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("list the directory");
    entries.map(|it| it.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

#[test]
fn what_is_no_regular_file_is_wrong_usage() {
    let dir = tempdir().expect("a directory");
    let piped = Filter::new("image-serve").args(["--lazy", "-D"]).arg(dir.path());
    let piped = piped.run(&image(&pagemap(&[]), b""));
    piped.refused(2, "a pipe");
    assert!(piped.stderr[0].contains("stdin is not a regular file"), "{:?}", piped.stderr);
    assert!(files_in(dir.path()).is_empty(), "touched the directory");

    for option in [&["--threads", "2"][..], &["--verify-first"], &["-W", "/tmp"]] {
        let alone = Filter::new("image-serve").arg("-D").arg(dir.path()).args(option).run(&[]);
        alone.refused(2, "without --lazy");
        assert!(alone.stderr[0].contains("--lazy"), "{:?}", alone.stderr);
    }
    assert!(files_in(dir.path()).is_empty(), "touched the directory");
}

/// Each with the command that would have started CRIU, which must not be.
#[test]
fn an_image_that_does_not_fit_is_refused_before_criu_is_started() {
    if !is_allowed("an_image_that_does_not_fit_is_refused_before_criu_is_started") {
        return;
    }
    let whole = image(&pagemap(&[(16, 3, LATE)]), &pages(0..3));
    let cases = [
        (
            image(&pagemap(&[(16, 3, LATE)]), &pages(0..2)),
            "pages-1.img: not what pagemap-7.img says",
        ),
        (image(&pagemap(&[(16, 1, PRESENT)]), &pages(0..2)), "pages-1.img: not what"),
        (image(b"no pagemap", &pages(0..3)), "pagemap-7.img: not as CRIU writes it"),
        (image(&pagemap(&[(16, 3, 1)]), b""), "pagemap-7.img: wants pages of an earlier image"),
        (whole[..whole.len() - 1].to_vec(), "stdin: truncated"),
        (whole[..whole.len() / 2].to_vec(), "stdin: truncated"),
    ];
    for (image, cause) in cases {
        let dir = tempdir().expect("a directory");
        let started = dir.path().join("started");
        let finished = lazy(&dir, &image).arg("--").arg("touch").arg(&started).start().finish();
        assert_eq!(finished.status.code(), Some(1), "{cause}: {:?}", finished.stderr);
        assert!(finished.stderr[0].contains(cause), "{cause}: {:?}", finished.stderr);
        assert!(!started.exists(), "{cause}: CRIU was started");
        assert_eq!(files_in(dir.path()), ["image"], "{cause}: left something behind");
    }
}

/// Serves an image, and is a CRIU that connects where memory is handed over, unless `connects` is
/// false, and reads these files.
fn serve(
    image: &[u8],
    connects: bool,
    names: &[&str],
) -> (Vec<std::io::Result<Option<Vec<u8>>>>, Finished) {
    let dir = tempdir().expect("a directory");
    let running = lazy(&dir, image).start();
    running.wait_for("socket-init");
    let memory = connects.then(|| {
        UnixStream::connect(dir.path().join("lazy-pages.socket")).expect("connect for memory")
    });
    let mut client = RestoreClient::connect(dir.path()).expect("connect");
    let files = names.iter().map(|name| client.read(name)).collect();
    drop(client);
    if let Some(mut memory) = memory {
        // The processes are let run, and none of them has lazy memory.
        let _ = memory.write_all(&0x5253_5446_u32.to_ne_bytes());
    }
    (files, running.finish())
}

#[test]
fn criu_gets_what_may_not_come_late_and_nothing_else() {
    if !is_allowed("criu_gets_what_may_not_come_late_and_nothing_else") {
        return;
    }
    // Enough for both to stay in the file, and little enough to be held.
    for late in [3, 300] {
        let entries = [(16, 2, PRESENT), (18, late, LATE), (1000, 1, PRESENT), (2000, late, LATE)];
        let left_out = [(16, 2, 4), (18, late, 2), (1000, 1, 4), (2000, late, 2)];
        let late = late as usize;
        let all = [pages([1, 2]), pages(vec![3; late]), pages([4]), pages(vec![5; late])].concat();
        let image = image(&pagemap(&entries), &all);
        let names = ["inventory.img", "pagemap-7.img", "pages-1.img", "none.img"];
        let (files, finished) = serve(&image, true, &names);
        finished.succeeded();
        let files: Vec<_> = files.into_iter().map(|file| file.expect("an answer")).collect();
        assert_eq!(files[0].as_deref(), Some(&b"an inventory"[..]));
        assert_eq!(files[1], Some(pagemap(&left_out)));
        assert!(files[2] == Some(pages([1, 2, 4])), "other pages");
        assert_eq!(files[3], None);
    }
}

#[test]
fn an_image_without_memory_that_may_come_late_is_served_as_it_is() {
    if !is_allowed("an_image_without_memory_that_may_come_late_is_served_as_it_is") {
        return;
    }
    let map = pagemap(&[(16, 2, PRESENT)]);
    let names = ["inventory.img", "pagemap-7.img", "pages-1.img"];
    let (files, finished) = serve(&image(&map, &pages([1, 2])), true, &names);
    finished.succeeded();
    assert_eq!(files[1].as_ref().expect("an answer").as_ref(), Some(&map));
    assert!(files[2].as_ref().expect("an answer") == &Some(pages([1, 2])), "other pages");
}

#[test]
fn who_does_not_hand_over_memory_does_not_get_a_pagemap_without_it() {
    if !is_allowed("who_does_not_hand_over_memory_does_not_get_a_pagemap_without_it") {
        return;
    }
    let image = image(&pagemap(&[(16, 3, LATE)]), &pages(0..3));
    let (files, finished) = serve(&image, false, &["inventory.img", "pagemap-7.img"]);
    assert!(matches!(files[0], Ok(Some(_))), "{:?}", files[0]);
    assert!(files[1].is_err(), "it got {:?}", files[1]);
    finished.refused(1, "no connection for memory");
    assert!(finished.stderr[0].contains("needs --lazy-pages"), "{:?}", finished.stderr);
}

#[test]
fn a_criu_that_hangs_up_before_the_processes_run_has_not_restored_them() {
    if !is_allowed("a_criu_that_hangs_up_before_the_processes_run_has_not_restored_them") {
        return;
    }
    let dir = tempdir().expect("a directory");
    let image = image(&pagemap(&[(16, 3, LATE)]), &pages(0..3));
    let running = lazy(&dir, &image).start();
    running.wait_for("socket-init");
    let memory = UnixStream::connect(dir.path().join("lazy-pages.socket"));
    let mut client = RestoreClient::connect(dir.path()).expect("connect");
    client.read("inventory.img").expect("an answer");
    drop((client, memory.expect("connect for memory")));
    let finished = running.finish();
    finished.refused(1, "hung up");
    assert!(finished.stderr[0].contains("before the processes were restored"));
}

/// Without it the keeper could not know who has died.
#[test]
fn it_is_refused_on_a_kernel_without_pidfd() {
    const NAME: &str = "it_is_refused_on_a_kernel_without_pidfd";
    if !is_allowed(NAME) {
        return;
    }
    let dir = tempdir().expect("a directory");
    let Some(strace) = without_call("pidfd_open", "ENOSYS", &dir.path().join("log")) else {
        return println!("skipped: {NAME}: no strace");
    };
    let strace: Vec<_> = strace.iter().map(String::as_str).collect();
    let image = image(&pagemap(&[(0x1000, 1, LATE)]), &pages([1]));
    let refused = lazily(Filter::under(&strace, "image-serve"), &dir, &image).start().finish();
    refused.refused(1, "no pidfd");
    let said = "image-serve: pidfd_open: Function not implemented: --lazy takes Linux 5.3";
    assert_eq!(refused.stderr, [said]);
}

/// The same for whatever starts `image-serve`. Under strace the programs get this error.
#[test]
fn where_there_is_no_memory_on_demand_the_cure_is_named_before_criu_is_started() {
    let is_root = nix::unistd::geteuid().is_root();
    let (no_capability, no_profile) = ("it takes CAP_SYS_PTRACE", "it takes a seccomp profile");
    let cases = [
        (Some("ENOSYS"), "this kernel has none (CONFIG_USERFAULTFD)"),
        (Some("EPERM"), if is_root { no_profile } else { no_capability }),
        (None, no_capability),
    ];
    for (error, cure) in cases {
        for name in ["image-serve", "criu-restore", "criu-run"] {
            let dir = tempdir().expect("a directory");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(dir.path(), mode).expect("anybody may use it");
            // criu-run takes no descriptor that it could not carry over.
            let close = "for fd in /proc/self/fd/*; do fd=${fd##*/}; \
                         [ $fd -lt 3 ] || eval \"exec $fd>&-\"; done; exec \"$@\"";
            let inject = format!("inject=userfaultfd:error={}", error.unwrap_or_default());
            let log = dir.path().join("log").display().to_string();
            let strace = ["strace", "-f", "-o", &log, "-e", &inject];
            let mut words = vec!["bash", "-c", close, "bash"];
            if error.is_some() {
                words.extend(strace);
            }
            let works = Command::new("strace").arg("-V").output();
            if error.is_some() && !works.is_ok_and(|told| told.status.success()) {
                println!("skipped: {name} without userfaultfd: no strace");
                continue;
            }
            let filter = Filter::under(&words, name);
            let filter = if error.is_some() { filter } else { filter.unprivileged() };
            let finished = start_lazily(filter, name, &dir);
            let messages = finished.stderr.join("\n");
            assert!(!finished.status.success(), "{name}, {error:?}: {messages}");
            let told = messages.contains("userfaultfd: ") && messages.contains(cure);
            assert!(told, "{name}, {error:?}: no '{cure}': {messages}");
            assert!(!dir.path().join("started").exists(), "{name}, {error:?}: CRIU was started");
        }
    }
}

fn start_lazily(filter: Filter, name: &str, dir: &TempDir) -> Finished {
    let (criu, started) = (dir.path().join("criu"), dir.path().join("started"));
    fs::write(&criu, format!("#!/bin/sh\ntouch {}\n", started.display())).expect("a script");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&criu, mode).expect("make it executable");
    let path = dir.path().join("image");
    fs::write(&path, image(&pagemap(&[]), b"")).expect("write an image");
    let stdin = fs::File::open(&path).expect("open the image");
    let filter = filter.env("CRIU", &criu).env("TMPDIR", dir.path()).current_dir(dir.path());
    let filter = match name {
        "image-serve" => filter.args(["--lazy", "--"]).arg(&criu),
        "criu-restore" => filter.arg("--lazy").arg(&path),
        _ => filter.arg("--image").arg(&path).args(["--lazy", "--", "true"]),
    };
    filter.stdin(stdin).start().finish()
}

#[test]
fn criu_run_takes_memory_on_demand_from_no_command_and_from_nothing_compressed() {
    let dir = tempdir().expect("a directory");
    let cases = [
        (["--save=cat", "--load=true"], "--lazy reads memory from a file in any order"),
        (["--image=job.img.zst", "--quiet"], "a compressed image does not allow"),
        (["--image=job.img.lz4", "--quiet"], "a compressed image does not allow"),
        (["--image=job.img.gz", "--quiet"], "a compressed image does not allow"),
    ];
    for (options, words) in cases {
        let run = Filter::new("criu-run").current_dir(dir.path()).args(options);
        let refused = run.args(["--lazy", "--", "touch", "started"]).run(&[]);
        refused.refused(2, words);
        assert!(refused.stderr[0].contains(words), "{:?}", refused.stderr);
        assert!(files_in(dir.path()).is_empty(), "{words}: the program was started");
    }
}
