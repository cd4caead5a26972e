//! Containers, by the real runc: their memory goes through `criu-page-capture` and a compressor,
//! and to no disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::bench::{Bench, skip, wait_for};
use crate::pipeline::Pipeline;

/// The host's user that is root in the container.
const INNER_ROOT: u32 = 100_000;

/// Megabytes that it has, and fills anew all the time.
const MEMORY: usize = 24;

/// A container that counts in a file, and checks its memory.
struct Container {
    bundle: PathBuf,
    criu: PathBuf,
}

impl Container {
    /// Prepares one, with a network namespace, and a user namespace if that is asked for. `None`
    /// (and a line that says why) where there is no runc or busybox, or runc starts no container.
    fn prepare(bench: &Bench, name: &str, users: bool) -> Option<Container> {
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new);
        let Some(busybox) = busybox.into_iter().find(|path| path.exists()) else {
            return skip(name, "there is no busybox (package busybox-static)");
        };
        if Command::new("runc").arg("--version").output().is_err() {
            return skip(name, "there is no runc (package runc)");
        }
        let bundle = bench.directory("bundle");
        let root = bundle.join("rootfs");
        for path in [bench.scratch(), &bundle] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("a directory");
        }
        fs::create_dir_all(root.join("bin")).expect("a directory");
        fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
        fs::write(bundle.join("criu.conf"), "network-lock skip\n").expect("a file");
        let container = Container { bundle, criu: bench.criu.program().to_path_buf() };
        assert!(container.runc(&["spec"]).status.success(), "runc spec");
        container.configure(users);
        if users {
            for path in ["", "bin", "bin/busybox"] {
                chown(root.join(path), Some(INNER_ROOT), Some(INNER_ROOT)).expect("chown");
            }
        }
        let started = container.runc(&["run", "--detach", "--bundle", ".", "counter"]);
        if !started.status.success() {
            let said = String::from_utf8_lossy(&started.stderr).into_owned();
            return skip(name, &format!("runc starts no container here: {}", said.trim()));
        }
        Some(container)
    }

    /// What `runc spec` has written, but for the program and the namespaces.
    fn configure(&self, users: bool) {
        let path = self.bundle.join("config.json");
        let text = fs::read_to_string(&path).expect("config.json");
        let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        // A shell that holds memory in a variable, and counts as long as it is right.
        let script = format!(
            "word=0123456789abcdef; while [ ${{#word}} -lt {} ]; do word=$word$word; done; n=0; \
             while [ ${{#word}} -ge {} ]; do n=$((n + 1)); echo $n > /count.new; \
             busybox mv /count.new /count; busybox usleep 20000; done",
            MEMORY << 20,
            MEMORY << 20
        );
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = vec!["/bin/busybox", "sh", "-c", &script].into();
        config["root"]["readonly"] = false.into();
        let file = self.bundle.join("criu.conf");
        config["annotations"]["org.criu.config"] = file.to_string_lossy().into();
        if users {
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.push(serde_json::json!({"type": "user"}));
            let ids = serde_json::json!([{"containerID": 0, "hostID": INNER_ROOT, "size": 65536}]);
            config["linux"]["uidMappings"] = ids.clone();
            config["linux"]["gidMappings"] = ids;
        }
        fs::write(path, config.to_string()).expect("config.json");
    }

    fn runc(&self, arguments: &[&str]) -> Output {
        // What it starts inherits these, so they are no pipes.
        let messages = self.bundle.join("messages");
        let file = fs::File::create(&messages).expect("a file");
        let status = Command::new("runc")
            .args(["--root", "state", "--criu"])
            .arg(&self.criu)
            .args(arguments)
            .current_dir(&self.bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(if arguments[0] == "run" { Stdio::null() } else { file.into() })
            .status()
            .expect("start runc");
        let stderr = fs::read(messages).unwrap_or_default();
        Output { status, stdout: Vec::new(), stderr }
    }

    /// Waits until it has counted on from `before`.
    fn counts_on_from(&self, before: u64) -> u64 {
        wait_for("the container counts", || {
            let text = fs::read_to_string(self.bundle.join("rootfs/count")).ok()?;
            text.trim().parse().ok().filter(|count| *count > before + 2)
        })
    }

    fn delete(&self) {
        let _ = self.runc(&["kill", "counter", "KILL"]);
        wait_for("the container's end", || {
            self.runc(&["delete", "--force", "counter"]).status.success().then_some(())
        });
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.runc(&["delete", "--force", "counter"]);
    }
}

fn comes_back(test: &str, users: bool) {
    let Some(bench) = Bench::set_up(test) else {
        return;
    };
    let Some(container) = Container::prepare(&bench, test, users) else {
        return;
    };
    container.counts_on_from(0);
    let images = bench.directory("cp");
    let runc = format!("runc --root bundle/state --criu '{}'", bench.criu.program().display());
    let script = format!(
        "criu-page-capture -D cp --listen 0 -- {runc} checkpoint --image-path $PWD/cp \
         --work-path $PWD/work --page-server 127.0.0.1:{{}} counter | zstd -q --check > image.zst"
    );
    let mut checkpoint = Pipeline::start(&bench, "checkpoint", &script);
    let log = || fs::read_to_string(bench.scratch().join("work/dump.log")).unwrap_or_default();
    assert_eq!(checkpoint.status(), 0, "{}\n{}", checkpoint.messages(), log());
    let on_disk: u64 = fs::read_dir(images)
        .expect("the directory")
        .map(|entry| entry.expect("an entry").metadata().expect("a file").len())
        .sum();
    assert!(on_disk < 1 << 20, "its memory is on the disk: {on_disk} bytes");
    // The container has gone, and its name is free.
    let stopped = container.counts_on_from(0);
    let directory = bench.directory("back");
    let script = "zstd -dc image.zst | image-extract --mode 644 -D back && chmod 755 back";
    Pipeline::start(&bench, "extract", script).must_succeed();
    let back = directory.to_string_lossy().into_owned();
    let restored = container.runc(&[
        "restore",
        "--detach",
        "--image-path",
        &back,
        "--work-path",
        "work",
        "--bundle",
        ".",
        "counter",
    ]);
    let said = String::from_utf8_lossy(&restored.stderr).into_owned();
    let log = fs::read_to_string(container.bundle.join("work/restore.log")).unwrap_or_default();
    let errors: Vec<_> = log.lines().filter(|line| line.contains("Error")).collect();
    assert!(restored.status.success(), "{said}\n{}", errors.join("\n"));
    container.counts_on_from(stopped);
    container.delete();
}

#[test]
fn a_container_comes_back() {
    comes_back("a_container_comes_back", false);
}

#[test]
fn a_container_with_users_of_its_own_comes_back() {
    comes_back("a_container_with_users_of_its_own_comes_back", true);
}
