//! What users of `criu-checkpoint` and `criu-restore` do beside the straight way: terminals,
//! containers, services, inherited descriptors, full disks, and what no stream can restore.

use std::fs::{self, File};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::hold::Hold;
use tests::scene::Scene;

use crate::bench::{Bench, skip};
use crate::pipeline::Pipeline;

/// Starts a process that a script may dump, under `$PID`: in a session of its own, without a
/// terminal, and with no descriptor of the script's. Then waits until a process is gone.
const SHELL: &str = r#"
victim() { # COMMAND...
    rm -f pid
    setsid bash -c 'for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -lt 3 ] || eval "exec $fd>&-"; done
        echo $$ > pid.new; mv pid.new pid; exec "$@"' victim "$@" </dev/null >/dev/null 2>&1 &
    until [ -s pid ]; do sleep 0.02; done; PID=$(cat pid)
}
gone() { while [ -d /proc/$PID ]; do sleep 0.02; wait 2>/dev/null; done; }
fail() { echo "FAULT: $*" >&2; exit 1; }
trap '[ -z "${PID-}" ] || kill -9 $PID 2>/dev/null' EXIT
"#;

/// Runs a script, which must succeed, in a directory of its own.
fn run(bench: &Bench, script: &str) {
    Pipeline::start(bench, "case", &format!("set -e\n{SHELL}\n{script}")).must_succeed();
}

#[test]
fn a_job_of_a_terminal_comes_back_to_it() {
    let name = "a_job_of_a_terminal";
    let Some(bench) = Bench::set_up(name) else { return };
    if Command::new("script").arg("--version").output().is_err() {
        skip::<()>(name, "there is no script(1)");
        return;
    }
    let job = "set -m; sleep 1000 & job=$!
        criu-checkpoint -t $job -j --network-lock skip -- 'cat > image' || exit 1
        wait $job
        criu-restore -j -- 'cat image' || exit 2
        [ \"$(readlink /proc/$job/fd/0)\" = \"$(tty)\" ] || exit 3
        kill -9 $job";
    fs::write(bench.scratch().join("job"), job).expect("write the script");
    run(
        &bench,
        "script -qec 'bash job' terminal >/dev/null </dev/null || { cat terminal >&2; exit 1; }",
    );
}

#[test]
fn it_can_be_the_first_process_of_a_container_and_ends_as_the_tree_does() {
    let Some(bench) = Bench::set_up("first_process_of_a_container") else { return };
    run(
        &bench,
        "victim bash -c 'trap \"exit 7\" USR1; while :; do sleep 0.05; done'
        criu-checkpoint -t $PID --network-lock skip -- 'cat > image'; gone
        PID=''
        unshare -pf --mount-proc criu-restore --wait -- 'cat image' 2>said & container=$!
        until grep -q 'restored: ' said; do sleep 0.02; done
        kill -USR1 $(pgrep -P $container)
        status=0; wait $container || status=$?
        [ $status -eq 7 ] || fail \"it ended with $status\"",
    );
}

#[test]
fn a_tree_restores_in_a_fresh_pid_namespace_whatever_its_ids() {
    let Some(bench) = Bench::set_up("fresh_pid_namespace") else { return };
    for id in [2, 3, 4, 7, 9, 12, 16, 25] {
        run(
            &bench,
            &format!(
                "cat >dump <<'END'
                for f in /proc/self/fd/*; do n=${{f##*/}}
                    [ $n -lt 3 ] || eval \"exec $n>&-\"; done
                [ {id} -eq 2 ] || echo $(({id} - 1)) > /proc/sys/kernel/ns_last_pid
                setsid sleep 1000 </dev/null >/dev/null 2>&1 & id=$!
                echo $id > id; until [ \"$(cat /proc/$id/comm)\" = sleep ]; do sleep 0.02; done
                criu-checkpoint -t $id --network-lock skip -- 'cat > image'
END
                unshare -pf --mount-proc bash -c \"$(cat dump)\"; PID=''
                unshare -pf --mount-proc criu-restore -- 'cat image'"
            ),
        );
    }
}

#[test]
fn descriptors_that_the_tree_inherits_are_the_caller_s() {
    let Some(bench) = Bench::set_up("inherited_descriptors") else { return };
    for fd in [1, 3, 6, 8] {
        run(
            &bench,
            &format!(
                "rm -f pid fifo; mkfifo fifo
                echo 'echo $$ > pid; exec 9<>fifo
                    while :; do echo line; read -rt 0.05 -u 9; done' > loop
                for f in /proc/self/fd/*; do n=${{f##*/}}; [ $n -lt 3 ] || eval \"exec $n>&-\"; done
                setsid bash loop </dev/null 2>/dev/null | cat >/dev/null &
                until [ -s pid ]; do sleep 0.02; done
                PID=$(cat pid) pipe=$(readlink /proc/$(cat pid)/fd/1)
                criu-checkpoint -t $PID --network-lock skip -- 'cat > image'; gone
                criu-restore --inherit-fd \"fd[{fd}]:$pipe\" -- 'cat image' {fd}>out
                until [ -s out ]; do sleep 0.02; done
                [[ $(readlink /proc/$PID/fd/1) == */out ]] || fail \"$(readlink /proc/$PID/fd/1)\""
            ),
        );
    }
}

#[test]
fn firewall_rules_are_restored_from_a_directory_and_their_loss_is_told() {
    let name = "firewall_rules";
    let Some(bench) = Bench::set_up(name) else { return };
    if Command::new("nft").arg("--version").output().is_err() {
        skip::<()>(name, "there is no nft");
        return;
    }
    run(
        &bench,
        "victim unshare -n bash -c 'nft add table inet t; nft add chain inet t c
            nft add rule inet t c counter; exec sleep 1000'
        until [ \"$(cat /proc/$PID/comm)\" = sleep ]; do sleep 0.02; done
        rules() { nsenter -t $PID -n nft list ruleset | wc -l; }
        before=$(rules); [ $before -gt 3 ] || fail no rules
        criu-checkpoint -t $PID --network-lock skip -- 'cat > image'; gone
        ! criu-restore -- 'cat image' 2>said || fail restored without its rules
        cat said >&2
        tail -n 1 said | grep -q -e '--directory' || fail the way round is not named
        gone
        criu-restore --directory -- 'cat image'
        [ $(rules) -eq $before ] || fail other rules",
    );
}

#[test]
fn private_huge_pages_are_restored_from_a_directory_and_that_is_told() {
    let name = "huge_pages";
    let Some(bench) = Bench::set_up(name) else { return };
    if Command::new("python3").arg("--version").output().is_err() {
        skip::<()>(name, "there is no python3");
        return;
    }
    const PAGES: &str = "/proc/sys/vm/nr_hugepages";
    let before = fs::read_to_string(PAGES).unwrap_or_default();
    let _ = fs::write(PAGES, "20");
    let has_pages = fs::read_to_string(PAGES).is_ok_and(|now| now.trim() == "20");
    if has_pages {
        run(
            &bench,
            "victim python3 -c 'import mmap,time
m=mmap.mmap(-1,2<<20,flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS|0x40000); m[:4]=b\"huge\"
open(\"ready\",\"w\").close(); time.sleep(1000)'
            until [ -e ready ]; do sleep 0.02; done
            criu-checkpoint -t $PID --network-lock skip -- 'cat > image'; gone
            ! criu-restore -- 'cat image' 2>said || fail restored
            cat said >&2; grep -q -e '--directory' said || fail the way round is not named
            criu-restore --directory -- 'cat image'; kill -0 $PID",
        );
    } else {
        skip::<()>(name, "this machine gives no huge pages");
    }
    let _ = fs::write(PAGES, before);
}

/// `systemctl stop`, or the machine's shutdown.
#[test]
fn a_signal_to_all_processes_leaves_tcp_connections_whole() {
    let Some(bench) = Bench::set_up("signal_to_all") else { return };
    let scene = Scene::with(bench.criu.program().to_owned());
    let hold = Hold::start(scene.path(), 4, true);
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let _ = fs::remove_file(scene.file("image"));
        let options = ["--tcp-established", "--network-lock", "skip"];
        let running = scene.checkpoint(hold.pid(), &options, "cat > image; sleep 1000").start();
        scene.wait_until("the script", || scene.processes().iter().any(|it| it.name == "script"));
        for process in scene.processes() {
            let _ = kill(Pid::from_raw(process.pid), signal);
        }
        let finished = running.finish();
        assert!(!finished.status.success());
        assert!(finished.stderr.last().is_some_and(|it| it.ends_with("runs on")), "{finished:?}");
        hold.must_run();
        hold.answers().expect("its connection");
        scene.must_leave_nothing();
    }
}

#[test]
fn the_cause_is_told_and_what_can_be_done() {
    let Some(bench) = Bench::set_up("cause_is_told") else { return };
    let scene = Scene::with(bench.criu.program().to_owned());
    let mut hold = Hold::start(scene.path(), 2, true);
    let skip_lock = ["--network-lock", "skip"];
    let said = |finished: tests::pipeline::Finished| {
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.iter().any(|it| it.contains("CRIU's log: ")), "{finished:?}");
        finished.stderr.join("\n")
    };
    let tcp = said(scene.checkpoint(hold.pid(), &skip_lock, "cat > image").start().finish());
    assert!(
        tcp.contains("Error (") && tcp.contains("hint: the tree has a TCP connection"),
        "{tcp}"
    );
    hold.must_run();
    let options = ["--network-lock", "skip", "--tcp-close"];
    scene.checkpoint(hold.pid(), &options, "cat > image").start().finish().succeeded();
    hold.reap();
    fs::rename(scene.file("held"), scene.file("moved")).expect("rename its file");
    let missing = said(scene.restore(&["--tcp-close"], "cat image").start().finish());
    assert!(
        missing.contains("/held") && missing.contains("hint: a file that was open"),
        "{missing}"
    );
    let moved = File::create(scene.file("held")).expect("its file");
    moved.set_len(5).expect("its size");
    let size = said(scene.restore(&["--tcp-close"], "cat image").start().finish());
    assert!(size.contains("bad size") && size.contains("has another size"), "{size}");
}

#[test]
fn the_verdict_needs_no_disk() {
    let Some(bench) = Bench::set_up("verdict_needs_no_disk") else { return };
    run(
        &bench,
        "victim sleep 1000; mkdir small; mount -t tmpfs -o size=64k none small || exit
        trap 'umount -l small; kill -9 $PID 2>/dev/null' EXIT
        head -c 44k /dev/zero > small/fill
        TMPDIR=$PWD/small criu-checkpoint -t $PID --network-lock skip -- 'cat > image'
        image-extract --verify < image; gone
        criu-restore -- 'cat image'; kill -0 $PID",
    );
}
