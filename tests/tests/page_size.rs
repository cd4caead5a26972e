//! Kernels with larger pages: a pipe of so many bytes has fewer slots there.
//!
//! There is none here. A library stands between a filter and the kernel, and tells it the
//! capacities that such a kernel would tell; the slots are those of this kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use tempfile::tempdir;
use tests::criu::pipe;
use tests::filters::split_to;
use tests::pipeline::{collect_from, wait_until, write_until_refused};
use tests::stream::{Writer, read_shards, read_stream};

const LIBRARY: &str = r"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OURS = 4096, THEIRS = 65536, TIMES = THEIRS / OURS };

static int control(int fd, int command, long argument) {
    if (command == F_SETPIPE_SZ)
        argument = argument < THEIRS ? OURS : argument / TIMES;
    long result = syscall(SYS_fcntl, fd, command, argument);
    int is_size = command == F_SETPIPE_SZ || command == F_GETPIPE_SZ;
    return is_size && result > 0 ? result * TIMES : result;
}

#define CONTROL(name)                                                       \
    int name(int fd, int command, ...) {                                    \
        va_list arguments;                                                  \
        va_start(arguments, command);                                       \
        long argument = va_arg(arguments, long);                            \
        va_end(arguments);                                                  \
        return control(fd, command, argument);                              \
    }
CONTROL(fcntl)
CONTROL(fcntl64)

#ifdef PAGES
long __sysconf(int);
long sysconf(int name) { return name == _SC_PAGESIZE ? THEIRS : __sysconf(name); }
#endif
";

/// Compiles the library, if there is a compiler that can.
fn library(dir: &Path, options: &[&str]) -> Option<PathBuf> {
    let path = dir.join("pages.so");
    let source = dir.join("pages.c");
    fs::write(&source, LIBRARY).expect("a file");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-w", "-o"]).arg(&path).args(options).arg(&source);
    let compiled = compiler.stdout(Stdio::null()).stderr(Stdio::null()).status();
    compiled.is_ok_and(|status| status.success()).then_some(path)
}

#[test]
fn a_stalled_shard_does_not_stop_the_others_where_pages_are_large() {
    const NAME: &str = "a_stalled_shard_does_not_stop_the_others_where_pages_are_large";

    if !cfg!(target_env = "gnu") {
        return println!("skipped: {NAME}: no C library that can be stood before");
    }
    let files = (0..20_000).map(|number| format!("f-{number}.img"));
    let stream = files.fold(Writer::new(), |writer, name| writer.file(&name, &[b'x'; 100]));
    let stream = stream.image_eof().finish();
    for options in [&[][..], &["-DPAGES"]] {
        let dir = tempdir().expect("a directory");
        let Some(library) = library(dir.path(), options) else {
            return println!("skipped: {NAME}: no C compiler");
        };
        let (stalled, first) = pipe(None).expect("a pipe");
        let (read, second) = pipe(None).expect("a pipe");
        let read = collect_from(read);
        let (stdin, feed) = pipe(None).expect("a pipe");
        let split = split_to([first, second]).env("LD_PRELOAD", library).stdin(stdin).start();
        let fed = stream.clone();
        let feed = thread::spawn(move || write_until_refused(feed, &fed));
        wait_until(&format!("{options:?}: the others"), || feed.is_finished());
        let shards = [collect_from(stalled), read].map(|shard| shard.join().expect("a shard"));
        split.finish().succeeded();
        assert!(!shards[0].is_empty() && !shards[1].is_empty(), "{options:?}: a shard got nothing");
        assert!(read_shards(&shards) == read_stream(&stream), "{options:?}: other files");
    }
}
