//! The recipes of the man pages with the real tools: `aws` and an S3 server on
//! loopback, and `openssl enc`. A tool that cannot be had skips its test, by name.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::tempdir;
use tests::pipeline::Filter;
use tests::random::Random;
use tests::stream::{Writer, read_stream};

fn image() -> Vec<u8> {
    let pages = Random::new(7).bytes(20 << 20);
    let named = Writer::new().name("pages-1.img");
    let pages = pages.chunks(1 << 20).fold(named, |writer, chunk| writer.data(chunk)).file_eof();
    pages.file("inventory.img", b"all").image_eof().finish()
}

/// An S3 server that ends with the test.
struct Server {
    process: Pid,
    /// Has an `aws` that finds it.
    bin: PathBuf,
}

impl Server {
    /// Or why there is none.
    fn start(dir: &Path) -> Result<Server, String> {
        let loopback = Path::new(env!("CARGO_MANIFEST_DIR")).join("loopback");
        let started = Command::new(loopback).arg("s3").arg(dir).output();
        let started = started.map_err(|error| error.to_string())?;
        if !started.status.success() {
            return Err(String::from_utf8_lossy(&started.stderr).trim().to_owned());
        }
        let process = String::from_utf8_lossy(&started.stdout).trim().parse().expect("a number");
        Ok(Server { process: Pid::from_raw(process), bin: dir.join("bin") })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.process, Signal::SIGKILL);
    }
}

/// Puts an image through these commands and back.
fn goes_through(up: &str, down: &str, with: impl Fn(Filter) -> Filter) {
    let dir = tempdir().expect("a directory");
    let stream = image();
    let filter = |name: &str, command: &str| {
        let filter = Filter::new(name).progress_apart().current_dir(dir.path());
        let limit = std::time::Duration::from_secs(120);
        with(filter.args(["-n", "3", "--filter", command]).time_limit(limit))
    };
    filter("shard-split", up).run(&stream).succeeded();
    let merged = filter("shard-merge", down).run(&[]);
    merged.succeeded();
    assert!(read_stream(&merged.stdout) == read_stream(&stream), "other files");
}

#[test]
fn shards_go_to_s3_and_come_back() {
    let dir = tempdir().expect("a directory");
    let server = match Server::start(dir.path()) {
        Ok(server) => server,
        Err(why) => return println!("skipped: shards_go_to_s3_and_come_back: {why}"),
    };
    let path = format!("{}:{}", server.bin.display(), std::env::var("PATH").unwrap_or_default());
    let with = |filter: Filter| filter.env("PATH", &path);
    let bucket = "test $SHARD = 0 && aws s3 mb s3://images >&2; until aws s3 ls s3://images > /dev/null 2>&1; \
                  do sleep 0.2; done; ";
    let up = "zstd -q -1 | aws s3 cp - \"s3://images/img-$SHARD.zst\"";
    let down = "aws s3 cp \"s3://images/img-$SHARD.zst\" - | zstd -q -d";
    goes_through(&format!("{bucket}{up}"), down, with);
}

#[test]
fn shards_are_encrypted_and_decrypted() {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        return println!("skipped: shards_are_encrypted_and_decrypted: no openssl");
    }
    let cipher = "openssl enc -aes-256-ctr -pbkdf2 -pass pass:secret";
    goes_through(&format!("{cipher} > $SHARD.enc"), &format!("{cipher} -d -in $SHARD.enc"), |it| {
        it
    });
}
