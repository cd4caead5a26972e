//! The recipes of the man pages with the real tools: `aws` and an S3 server on
//! loopback (`moto`), and `openssl enc`. A tool that cannot be had skips its test, by
//! name.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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

fn runs(program: &Path) -> bool {
    let mut command = Command::new(program);
    // `aws --help` wants a pager.
    let option = if program.ends_with("aws") { "--version" } else { "--help" };
    let command = command.arg(option).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Where the program is: on the path, or in a virtual environment under `target`, made now.
fn python_tool(name: &str) -> Option<PathBuf> {
    if runs(Path::new(name)) {
        return Some(name.into());
    }
    let test = std::env::current_exe().ok()?;
    let venv = test.ancestors().nth(3)?.join("s3-tools");
    let tool = venv.join("bin").join(name);
    if !tool.exists() {
        let quietly = |command: &mut Command| {
            let command = command.stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success()).then_some(())
        };
        quietly(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let mut pip = Command::new(venv.join("bin/pip"));
        quietly(pip.args(["install", "--quiet", "moto[server]", "awscli"]))?;
    }
    runs(&tool).then_some(tool)
}

/// An S3 server that ends with the test.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(moto: &Path) -> Option<Server> {
        let mut command = Command::new(moto);
        command.args(["-H", "127.0.0.1", "-p", "0"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().ok()?;
        let lines = BufReader::new(process.stderr.take()?).lines();
        let mut address = None;
        let mut rest = lines.map_while(Result::ok);
        for line in rest.by_ref() {
            if let Some((_, found)) = line.split_once("Running on ") {
                address = Some(found.trim().to_owned());
                break;
            }
        }
        // What it says of each request must go somewhere.
        std::thread::spawn(move || rest.for_each(drop));
        Some(Server { process, address: address? })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
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
    let skipped = |why: &str| println!("skipped: shards_go_to_s3_and_come_back: {why}");
    let Some(aws) = python_tool("aws") else { return skipped("no aws") };
    let Some(moto) = python_tool("moto_server") else { return skipped("no moto_server") };
    let Some(server) = Server::start(&moto) else { return skipped("moto_server does not start") };
    let with = |filter: Filter| {
        let filter = filter.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        let filter = filter.env("AWS_DEFAULT_REGION", "us-east-1").env("NO_PROXY", "127.0.0.1");
        filter.env("AWS_ENDPOINT_URL", &server.address).env("AWS", &aws)
    };
    let bucket = "test $SHARD = 0 && $AWS s3 mb s3://images >&2; until $AWS s3 ls s3://images > /dev/null 2>&1; \
                  do sleep 0.2; done; ";
    let up = "zstd -q -1 | $AWS s3 cp - \"s3://images/img-$SHARD.zst\"";
    let down = "$AWS s3 cp \"s3://images/img-$SHARD.zst\" - | zstd -q -d";
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
