//! Dumps through CRIU's page server: `criu-page-capture` in the place of `criu page-server`.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::Pid;

use crate::bench::{Bench, pid_of, wait_for};
use crate::criu::Image;
use crate::pipeline::Pipeline;
use crate::victim::Victim;

const OPTIONS: &str = "-v4 --network-lock skip --tcp-established -o dump.log";

/// What follows `--` for CRIU that connects `how`.
fn dump(bench: &Bench, how: &str, pid: i32) -> String {
    let criu = bench.criu.program().display();
    format!("{criu} dump --page-server {how} -D dump -t {pid} {OPTIONS}")
}

const BY_DESCRIPTOR: &str = "--ps-socket {}";
const BY_ADDRESS: &str = "--address 127.0.0.1 --port {}";

fn must_restore_from_a_directory(bench: &Bench, victim: &mut Victim) {
    let dumped = victim.reap();
    let images = bench.directory("images");
    Pipeline::start(bench, "extract", "image-extract -D images < image").must_succeed();
    bench.criu.restore(Image::Files, &images, &[]).must_succeed();
    victim.must_go_on(&dumped);
}

#[test]
fn a_tree_comes_back_from_the_page_server() {
    let Some(bench) = Bench::set_up("from_the_page_server") else {
        return;
    };
    for (name, ways) in
        [("descriptor", ("", BY_DESCRIPTOR)), ("address", ("--listen 0", BY_ADDRESS))]
    {
        let mut victim = Victim::start(&bench, &["--megabytes", "12"]);
        let images = bench.directory("dump");
        let dump = dump(&bench, ways.1, victim.pid());
        let script = format!("criu-page-capture -D dump {} -- {dump} > image", ways.0);
        Pipeline::start(&bench, name, &script).must_succeed();
        must_restore_from_a_directory(&bench, &mut victim);
        fs::remove_dir_all(images).expect("remove the directory");
        fs::remove_dir_all(bench.scratch().join("images")).expect("remove the directory");
        drop(victim);
        fs::remove_dir_all(bench.scratch().join("victim")).expect("remove the directory");
    }
}

/// Through shards, and by `image-serve`: the image is one like any other.
#[test]
fn an_image_from_the_page_server_is_streamed_back() {
    let Some(bench) = Bench::set_up("page_server_streamed_back") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--megabytes", "12"]);
    bench.directory("dump");
    bench.directory("restore");
    let dump = dump(&bench, BY_DESCRIPTOR, victim.pid());
    let script =
        format!("criu-page-capture -D dump -- {dump} | shard-split -n 3 --filter 'cat > $SHARD'");
    Pipeline::start(&bench, "dump", &script).must_succeed();
    let dumped = victim.reap();
    let criu = bench.criu.program().display();
    let script = format!(
        "shard-merge -n 3 --filter 'cat $SHARD' | image-serve -D restore -- {criu} restore --stream \
         -D restore --restore-detached -v4 --network-lock skip --tcp-established -o restore.log"
    );
    Pipeline::start(&bench, "restore", &script).must_succeed();
    victim.must_go_on(&dumped);
}

/// CRIU is told that it has failed, and lets the tree run on.
#[test]
fn a_tree_goes_on_when_the_capture_fails() {
    let Some(bench) = Bench::set_up("capture_fails") else {
        return;
    };
    let victim = Victim::start(&bench, &["--megabytes", "12"]);
    for (case, reader) in ["true", "head -c 3000000", "head -c 10000000"].into_iter().enumerate() {
        let images = bench.directory("dump");
        let dump = dump(&bench, BY_DESCRIPTOR, victim.pid());
        let script = format!("criu-page-capture -D dump -- {dump} | {reader} > /dev/null");
        let mut pipeline = Pipeline::start(&bench, &format!("case-{case}"), &script);
        assert_ne!(pipeline.status(), 0, "{reader}");
        victim.must_go_on(&victim.statuses());
        fs::remove_dir_all(images).expect("remove the directory");
    }
}

#[test]
fn a_tree_goes_on_when_the_capture_is_killed() {
    let Some(bench) = Bench::set_up("capture_killed") else {
        return;
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let victim = Victim::start(&bench, &["--megabytes", "12"]);
        let images = bench.directory("dump");
        let dump = dump(&bench, BY_DESCRIPTOR, victim.pid());
        // Nobody reads, so the capture stands in the middle of the memory.
        let script = format!(
            "mkfifo fifo; exec 3<>fifo; criu-page-capture -D dump -- {dump} > fifo & \
             echo $! > pid; wait $!"
        );
        let mut pipeline = Pipeline::start(&bench, &format!("{signal}"), &script);
        wait_for("the dump", || {
            let messages = pipeline.messages();
            messages.contains("checkpoint-start").then_some(())
        });
        let pid = fs::read_to_string(bench.scratch().join("pid")).expect("the pid");
        kill(Pid::from_raw(pid.trim().parse().expect("a pid")), signal).expect("a signal");
        assert_ne!(pipeline.status(), 0);
        wait_for("CRIU's end", || {
            let log = fs::read(images.join("dump.log")).unwrap_or_default();
            String::from_utf8_lossy(&log).contains("Dumping FAILED").then_some(())
        });
        victim.must_go_on(&victim.statuses());
        drop(victim);
        for name in ["dump", "victim"] {
            fs::remove_dir_all(bench.scratch().join(name)).expect("remove the directory");
        }
        fs::remove_file(bench.scratch().join("fifo")).expect("remove the FIFO");
    }
}

/// With `--end-at-inventory` CRIU's action script can wait for the end of the pipeline: the tree is
/// there until then, and runs on if the pipeline fails.
#[test]
fn the_action_script_can_wait_for_the_image() {
    let Some(bench) = Bench::set_up("page_server_action_script") else {
        return;
    };
    let mut victim = Victim::start(&bench, &["--megabytes", "12"]);
    let script = bench.scratch().join("hook");
    let wait = "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-dump ] || exit 0\n\
                while [ ! -e \"$0.done\" ]; do sleep 0.02; done\nexit \"$(cat \"$0.done\")\"\n";
    fs::write(&script, wait).expect("a script");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("a script");
    for (case, verdict) in [("fails", 1), ("succeeds", 0)] {
        let images = bench.directory("dump");
        let dump = dump(&bench, BY_DESCRIPTOR, victim.pid());
        let line = format!(
            "criu-page-capture -D dump --end-at-inventory -- {dump} --action-script $PWD/hook | \
             (cat > image; image-extract --verify < image && sleep 0.2 && echo {verdict} > hook.tmp \
             && mv hook.tmp hook.done)"
        );
        let mut pipeline = Pipeline::start(&bench, case, &line);
        let status = pipeline.status();
        assert_eq!(status == 0, verdict == 0, "{case}: {}", pipeline.messages());
        fs::remove_file(bench.scratch().join("hook.done")).expect("the verdict");
        if verdict != 0 {
            victim.must_go_on(&victim.statuses());
            fs::remove_dir_all(images).expect("remove the directory");
        }
    }
    must_restore_from_a_directory(&bench, &mut victim);
}

/// Two processes that share memory with each other: each proves that it sees what the other
/// writes, and that nothing else has changed.
const SHARING: &str = r#"
import mmap, os, sys, time
shared, own = mmap.mmap(-1, 8 << 20), mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 8 << 20, 4096):
    shared[page + 8:page + 16] = page.to_bytes(8, "little")
me = int(os.fork() > 0)
for page in range(0, 4 << 20, 4096):
    own[page:page + 8] = (page + me).to_bytes(8, "little")
step = 0
while True:
    step += 1
    shared[4096 * me:4096 * me + 8] = step.to_bytes(8, "little")
    other = int.from_bytes(shared[4096 * (1 - me):4096 * (1 - me) + 8], "little")
    intact = all(shared[p + 8:p + 16] == p.to_bytes(8, "little") for p in range(0, 8 << 20, 4096)) \
        and all(own[p:p + 8] == (p + me).to_bytes(8, "little") for p in range(0, 4 << 20, 4096))
    with open(sys.argv[1] + "/tmp%d" % me, "w") as file:
        file.write("%d %d %d\n" % (step, other, intact))
    os.rename(sys.argv[1] + "/tmp%d" % me, sys.argv[1] + "/%d" % me)
    time.sleep(0.02)
"#;

struct Sharing(Child);

impl Drop for Sharing {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(-(self.0.id() as i32)), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

impl Sharing {
    fn start(directory: &Path) -> Sharing {
        let mut command = Command::new("setsid");
        command.args(["python3", "-c", SHARING]).arg(directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Sharing(command.spawn().expect("start python3"))
    }

    /// Steps of the one, as both know them, once they have gone on from `before`.
    fn go_on_from(directory: &Path, before: (u64, u64)) -> (u64, u64) {
        wait_for("both processes go on", || {
            let read = |name: &str| -> Option<Vec<u64>> {
                let text = fs::read_to_string(directory.join(name)).ok()?;
                text.split_whitespace().map(|word| word.parse().ok()).collect()
            };
            let (one, two) = (read("0")?, read("1")?);
            assert_eq!((one[2], two[2]), (1, 1), "memory is damaged");
            let both_see = one[1] > before.1 + 3 && two[1] > before.0 + 3;
            (one[0] > before.0 + 3 && two[0] > before.1 + 3 && both_see).then_some((one[0], two[0]))
        })
    }
}

/// Over RPC, as the runtimes of containers have it: `criu swrk` and the options of the page server.
#[test]
fn shared_memory_is_dumped_over_rpc() {
    let Some(bench) = Bench::set_up("shared_memory_over_rpc") else {
        return;
    };
    let status = bench.directory("status");
    let images = bench.directory("dump");
    let mut sharing = Sharing::start(&status);
    let dumped = Sharing::go_on_from(&status, (0, 0));
    let mut capture = Command::new(crate::bench::program("criu-page-capture"))
        .args(["--listen", "0", "-v", "-D"])
        .arg(&images)
        .stdin(Stdio::null())
        .stdout(fs::File::create(bench.scratch().join("image")).expect("a file"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the capture");
    let mut said = capture.stderr.take().expect("its messages");
    let mut messages = String::new();
    while !messages.contains("socket-init\n") {
        let mut piece = [0; 512];
        let length = said.read(&mut piece).expect("its messages");
        assert!(length > 0, "the capture ended: {messages}");
        messages.push_str(std::str::from_utf8(&piece[..length]).expect("UTF-8"));
    }
    let port = messages.lines().find_map(|line| line.rsplit_once("127.0.0.1:")).expect("a port").1;
    let root = pid_of(&sharing.0).as_raw();
    let reply = rpc_dump(&bench, &images, root, port.parse().expect("a port"));
    let log = fs::read_to_string(images.join("dump.log")).unwrap_or_default();
    assert!(reply, "criu failed:\n{}", log.lines().rev().take(9).collect::<Vec<_>>().join("\n"));
    assert!(capture.wait().expect("wait for the capture").success());
    sharing.0.wait().expect("reap");
    wait_for("the pids are free", || {
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let mut groups = processes.filter(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.to_owned());
            fields.is_some_and(|it| it.split(' ').nth(2) == Some(&root.to_string()))
        });
        let first = groups.next();
        let _ =
            nix::sys::wait::waitpid(Pid::from_raw(-1), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        first.is_none().then_some(())
    });
    let restored = bench.directory("images");
    Pipeline::start(&bench, "extract", "image-extract -D images < image").must_succeed();
    bench.criu.restore(Image::Files, &restored, &[]).must_succeed();
    Sharing::go_on_from(&status, dumped);
}

/// A dump over RPC, with the page server at this port of this machine. Was it a success?
fn rpc_dump(bench: &Bench, images: &Path, pid: i32, port: u64) -> bool {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .expect("sockets");
    let theirs: OwnedFd = theirs;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor");
    let directory = fs::File::open(images).expect("the directory");
    fcntl(&directory, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor");
    let mut criu = Command::new(bench.criu.program())
        .arg("swrk")
        .arg(theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start criu swrk");
    drop(theirs);
    // A request of type DUMP (1) with its options; numbers are varints, the rest has a length.
    let mut page_server = field(1, b"127.0.0.1");
    page_server.extend(number(2, port));
    let mut options = number(1, directory.as_raw_fd() as u64);
    options.extend(number(2, pid as u64));
    options.extend(number(9, 4));
    options.extend(field(10, b"dump.log"));
    options.extend(field(11, &page_server));
    let request = [number(1, 1), field(2, &options)].concat();
    send(ours.as_raw_fd(), &request, nix::sys::socket::MsgFlags::MSG_NOSIGNAL).expect("a request");
    let mut reply = [0; 4096];
    let length = recv(ours.as_raw_fd(), &mut reply, nix::sys::socket::MsgFlags::empty());
    let length = length.expect("a reply");
    let _ = std::io::stdout().flush();
    drop(ours);
    criu.wait().expect("wait for criu");
    // Its type, and whether it was a success.
    reply[..length].starts_with(&[0x08, 1, 0x10, 1])
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

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn field(field: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}
