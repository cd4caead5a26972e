//! Programs that people start from a warm image: java, python and redis. Their memory comes while
//! they work on, and they find it as it was.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Pid;
use tests::random::Random;

use crate::bench::{Bench, skip, wait_for};
use crate::criu::Image;
use crate::pipeline::Pipeline;
use crate::storm::Herd;

/// A program in a session of its own, with this file among its arguments.
fn start(words: &[&str], mark: &Path) -> Herd {
    let mut command = Command::new("setsid");
    command.args(words);
    Herd::start(command, mark).expect("start setsid")
}

fn is_here(name: &str, program: &str, option: &str) -> bool {
    let is_here = Command::new(program).arg(option).output().is_ok_and(|it| it.status.success());
    if !is_here {
        skip::<()>(name, &format!("no {program} here"));
    }
    is_here
}

/// Lets it go on from `image`, and works with it meanwhile.
fn warm(bench: &Bench, mut work: impl FnMut()) {
    let images = bench.directory("restore");
    let script = "image-serve --lazy -D restore -p 3 3>restore.progress < image";
    let mut pipeline = Pipeline::start(bench, "restore", script);
    pipeline.wait_for_progress("restore.progress", "socket-init");
    bench.criu.restore(Image::Stream, &images, &["--lazy-pages"]).must_succeed();
    work();
    pipeline.must_succeed();
    work();
}

/// Counts how often all of its memory was right, in a file, and makes garbage meanwhile.
const JAVA: &str = "
import java.nio.file.*;
import java.util.*;
public class Warm {
    public static void main(String[] words) throws Exception {
        Path told = Path.of(words[0]);
        Path begun = Path.of(words[0] + \".new\");
        int size = 1 << 16;
        Map<Integer, long[]> table = new HashMap<>();
        for (int row = 0; row < 200; row++) table.put(row, new long[size]);
        for (long pass = 0; ; pass++) {
            for (int row = 0; row < 200; row++) {
                long[] old = table.get(row), next = new long[size];
                for (int at = 0; at < size; at++) {
                    if (old[at] != (pass == 0 ? 0 : pass + at)) {
                        Files.writeString(told, \"wrong: row \" + row + \" at \" + at);
                        return;
                    }
                    next[at] = pass + 1 + at;
                }
                table.put(row, next);
            }
            Files.writeString(begun, Long.toString(pass));
            Files.move(begun, told, StandardCopyOption.ATOMIC_MOVE);
        }
    }
}
";

#[test]
fn java_goes_on() {
    let name = "java_goes_on";
    if !is_here(name, "javac", "-version") || !is_here(name, "java", "-version") {
        return;
    }
    let Some(bench) = Bench::set_up("java") else { return };
    fs::write(bench.scratch().join("Warm.java"), JAVA).expect("write a program");
    let compiled = Command::new("javac").arg("Warm.java").current_dir(bench.scratch()).status();
    assert!(compiled.expect("start javac").success());
    let (classes, told) = (bench.scratch().display().to_string(), bench.scratch().join("told"));
    let options = ["-Xmx400m", "-XX:-UsePerfData", "-XX:+UseParallelGC", "-cp", &classes, "Warm"];
    let file = told.display().to_string();
    let words = [&["java"], &options[..], &[&file]].concat();
    let mut java = start(&words, &told);
    let passes = || -> Option<u64> {
        let text = fs::read_to_string(&told).unwrap_or_default();
        assert!(!text.contains("wrong"), "{text}");
        text.trim().parse().ok()
    };
    wait_for("a pass", || passes().filter(|passes| *passes > 1));
    java.dump(&bench);
    let before = passes().expect("a number");
    warm(&bench, || {
        wait_for("more passes", || passes().filter(|passes| *passes > before + 2));
    });
    java.kill();
}

/// A redis, and how it is spoken with.
struct Redis {
    socket: PathBuf,
}

impl Redis {
    const KEYS: usize = 40_000;

    /// What a key has: a kilobyte and more that no other has.
    fn value(key: usize) -> String {
        format!("{key:>1024}-{}", Random::new(key as u64).any())
    }

    fn connect(&self) -> Option<BufReader<UnixStream>> {
        let stream = UnixStream::connect(&self.socket).ok()?;
        Some(BufReader::new(stream))
    }

    /// Sends commands, and hears as many answers, each without its length.
    fn ask(&self, commands: &[String]) -> Vec<String> {
        let mut stream = self.connect().expect("connect with redis");
        let mut sender = stream.get_ref().try_clone().expect("another descriptor");
        let text = commands.join("\r\n") + "\r\n";
        std::thread::scope(|scope| {
            scope.spawn(move || sender.write_all(text.as_bytes()).expect("redis reads"));
            let mut line = || {
                let mut line = String::new();
                stream.read_line(&mut line).expect("redis answers");
                line.trim_end_matches("\r\n").to_owned()
            };
            let mut answer = || {
                let first = line();
                if first.starts_with('$') && first != "$-1" { line() } else { first }
            };
            commands.iter().map(|_| answer()).collect()
        })
    }

    /// Fails the test unless all values are there, which are asked for in no order.
    fn must_have_all(&self, seed: u64) {
        let mut random = Random::new(seed);
        let keys: Vec<_> = (0..Redis::KEYS).map(|_| random.below(Redis::KEYS)).collect();
        for keys in keys.chunks(1000) {
            let commands: Vec<_> = keys.iter().map(|key| format!("GET key:{key}")).collect();
            for (key, value) in keys.iter().zip(self.ask(&commands)) {
                assert!(value.trim_start() == Redis::value(*key).trim_start(), "{key}: {value}");
            }
        }
    }
}

#[test]
fn redis_goes_on_and_forks() {
    let name = "redis_goes_on_and_forks";
    if !is_here(name, "redis-server", "--version") {
        return;
    }
    let Some(bench) = Bench::set_up("redis") else { return };
    let redis = Redis { socket: bench.scratch().join("redis.socket") };
    let (socket, data) =
        (redis.socket.display().to_string(), bench.scratch().display().to_string());
    let config = bench.scratch().join("redis.conf");
    // Its arguments stay, by which it is found.
    let text = format!(
        "port 0\nunixsocket {socket}\nsave \"\"\nrdbcompression no\ndir {data}\n\
         set-proc-title no\n"
    );
    fs::write(&config, text).expect("write a configuration");
    let mut herd = start(&["redis-server", &config.display().to_string()], &config);
    wait_for("redis", || redis.connect().map(drop));
    let pid = Pid::from_raw(herd.pid());
    for first in (0..Redis::KEYS).step_by(1000) {
        let keys = first..first + 1000;
        let sets: Vec<_> =
            keys.map(|key| format!("SET key:{key} \"{}\"", Redis::value(key))).collect();
        assert!(redis.ask(&sets).iter().all(|answer| answer == "+OK"));
    }
    // No connection of ours is to be dumped.
    wait_for("no connection", || {
        let sockets = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = sockets.filter_map(|it| fs::read_link(it.path()).ok());
        let count = links.filter(|it| it.to_string_lossy().starts_with("socket:")).count();
        (count <= 1).then_some(())
    });
    herd.dump(&bench);
    let file = bench.scratch().join("dump.rdb");
    let mut seed = 0;
    warm(&bench, || {
        let _ = fs::remove_file(&file);
        // It forks a child that writes all of them to a file, and works on.
        let told = redis.ask(&["BGSAVE".into()]);
        assert!(told[0].contains("Background saving started"), "{told:?}");
        redis.must_have_all(seed);
        seed += 1;
        wait_for("the end of the child", || has_no_child(pid).then_some(()));
        assert!(file.metadata().is_ok_and(|it| it.len() > Redis::KEYS as u64 * 1024));
    });
    herd.kill();
}

fn has_no_child(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .is_ok_and(|children| children.trim().is_empty())
}
