//! What `contrib/` has for those who run `criu-run` by others: a unit, a manifest, and what watches
//! for the notice of an eviction.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use tests::pipeline::{Filter, program};

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(contrib(name)).expect("a file of contrib/")
}

/// What stands behind this name in a file of `NAME=VALUE` or `name: value`.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let mut lines = text.lines().map(str::trim);
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(['=', ':']));
    found.unwrap_or_else(|| panic!("no {name}")).trim()
}

fn number(text: &str, name: &str) -> u64 {
    value(text, name).trim_matches('"').parse().expect("a number")
}

/// What giving up on a checkpoint takes at most, in seconds, and the last output: `CRIU_GRACE`,
/// `AFTER_KILL` and `LAST` in the sources.
const GIVING_UP: u64 = 15 + 5 + 5;

/// The words of a command that follow `criu-run` are options that it has, up to `--`.
fn must_be_options(words: &[&str]) {
    let help = Filter::new("criu-run").arg("--help").run(&[]);
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let options = words.iter().take_while(|word| **word != "--");
    for option in options.filter(|word| word.starts_with("--") && **word != "--network-lock") {
        assert!(help.contains(option), "criu-run has no {option}");
    }
    assert!(words.contains(&"--"), "no program: {words:?}");
}

#[test]
fn the_unit_leaves_time_for_a_checkpoint_and_the_signal_to_criu_run() {
    let unit = read("systemd/criu-run@.service");
    let command: Vec<&str> = value(&unit, "ExecStart").split_whitespace().collect();
    let (name, words) = command.split_first().expect("a command");
    assert_eq!(*name, "criu-run");
    must_be_options(words);
    let deadline = words.iter().skip_while(|word| **word != "--deadline").nth(1);
    let deadline: u64 = deadline.expect("a deadline").parse().expect("a number");
    assert!(number(&unit, "TimeoutStopSec") >= deadline + GIVING_UP);
    assert_eq!(value(&unit, "KillMode"), "mixed");
    assert_eq!(value(&unit, "SuccessExitStatus"), "75");
    assert_eq!(value(&unit, "RestartForceExitStatus"), "75 124");
    assert_eq!(value(&unit, "RestartPreventExitStatus"), "2 123 125 126 127");
}

#[test]
fn systemd_accepts_the_unit() {
    let scratch = tempfile::tempdir().expect("a directory");
    let path = scratch.path().join("criu-run@.service");
    // The manual and the program need not be installed here.
    let unit = read("systemd/criu-run@.service")
        .replace("ExecStart=criu-run", &format!("ExecStart={}", program("criu-run").display()))
        .replace("Documentation=", "#");
    fs::write(path, unit).expect("write the unit");
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=one"])
        .arg(scratch.path().join("criu-run@job.service"))
        .stdin(Stdio::null())
        .output();
    let Ok(Output { status, stderr, .. }) = verify else {
        println!("skipped: systemd_accepts_the_unit: there is no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success() && !said.contains("criu-run@"), "{status}: {said}");
}

#[test]
fn the_pod_leaves_time_for_a_checkpoint() {
    let pod = read("kubernetes/pod.yaml");
    let words: Vec<&str> = pod
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "))
        .map(|word| word.trim_matches('"'))
        .skip_while(|word| *word != "criu-run")
        .collect();
    must_be_options(&words[1..]);
    let deadline = words.iter().skip_while(|word| **word != "--deadline").nth(1);
    let deadline: u64 = deadline.expect("a deadline").parse().expect("a number");
    assert!(number(&pod, "terminationGracePeriodSeconds") >= deadline + GIVING_UP);
    // 75 is a failure, after which a pod with this policy runs on; with Never it would not.
    assert_eq!(value(&pod, "restartPolicy"), "OnFailure");
}

/// `kubernetes-validate`, which has the schemas, from PATH or from pip.
fn validator() -> Option<PathBuf> {
    let works = |path: &PathBuf| {
        Command::new(path).arg("--version").output().is_ok_and(|it| it.status.success())
    };
    if let Some(found) = Some(PathBuf::from("kubernetes-validate")).filter(works) {
        return Some(found);
    }
    let tools = program("criu-run").parent()?.parent()?.join("kubernetes-tools");
    let found = tools.join("bin/kubernetes-validate");
    if !works(&found) {
        let run = |command: &mut Command| {
            let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            quiet.status().is_ok_and(|status| status.success())
        };
        let made = run(Command::new("python3").args(["-m", "venv"]).arg(&tools));
        let pip = tools.join("bin/pip");
        let _ = made && run(Command::new(pip).args(["install", "--quiet", "kubernetes-validate"]));
    }
    Some(found).filter(works)
}

#[test]
fn the_pod_is_one_by_the_schema() {
    let Some(validator) = validator() else {
        let reason = "there is no kubernetes-validate, and pip cannot get it";
        println!("skipped: the_pod_is_one_by_the_schema: {reason}");
        return;
    };
    let validate = |path: &Path| {
        let output = Command::new(&validator).arg("--strict").arg(path).output();
        let output = output.expect("start kubernetes-validate");
        (output.status.success(), format!("{output:?}"))
    };
    let (valid, said) = validate(&contrib("kubernetes/pod.yaml"));
    assert!(valid, "{said}");
    // It would see a mistake.
    let scratch = tempfile::tempdir().expect("a directory");
    let wrong = scratch.path().join("pod.yaml");
    fs::write(&wrong, read("kubernetes/pod.yaml").replace("mountPath", "mountpath"))
        .expect("write");
    assert!(!validate(&wrong).0);
}

/// A request: its first line, and its headers in lower case.
#[derive(Clone, Debug)]
struct Request {
    line: String,
    headers: String,
}

/// A metadata service on this machine.
struct Metadata {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Metadata {
    /// One that answers with a status and a body.
    fn serve(answer: impl Fn(&Request) -> (u16, String) + Send + 'static) -> Metadata {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = format!("http://{}", listener.local_addr().expect("its address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if let Some(request) = take_request(&connection) {
                    let (status, body) = answer(&request);
                    seen.lock().expect("the requests").push(request);
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n");
                    let answer = format!("{head}Connection: close\r\n\r\n{body}");
                    let _ = (&connection).write_all(answer.as_bytes());
                }
            }
        });
        Metadata { address, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("the requests").clone()
    }
}

fn take_request(connection: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(connection).lines().map_while(Result::ok);
    let line = lines.next()?;
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    Some(Request { line, headers: headers.join("\n").to_lowercase() })
}

/// Starts `eviction-watch CLOUD echo evicted`.
fn watch(cloud: &str, address: &str) -> Child {
    Command::new(contrib("eviction-watch"))
        .args([cloud, "echo", "evicted"])
        .env("METADATA", address)
        .env("EVERY", "0.05")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start eviction-watch")
}

/// What it has said when it has ended.
fn end_of(child: Child) -> (String, String) {
    let output = child.wait_with_output().expect("wait for eviction-watch");
    assert!(output.status.success(), "{output:?}");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (text(output.stdout), text(output.stderr))
}

fn has_curl(test: &str) -> bool {
    let found = Command::new("curl").arg("--version").output().is_ok();
    if !found {
        println!("skipped: {test}: there is no curl");
    }
    found
}

/// Counts the questions after which the notice is there.
fn after(count: usize) -> impl Fn() -> bool {
    let asked = AtomicUsize::new(0);
    move || asked.fetch_add(1, Ordering::Relaxed) >= count
}

#[test]
fn a_notice_of_aws_runs_the_command() {
    if !has_curl("a_notice_of_aws_runs_the_command") {
        return;
    }
    let is_due = after(3);
    let server = Metadata::serve(move |request| {
        if request.line.starts_with("PUT /latest/api/token ") {
            return match request.headers.contains("x-aws-ec2-metadata-token-ttl-seconds: ") {
                true => (200, "a-token".into()),
                false => (400, String::new()),
            };
        }
        let may_ask = request.headers.contains("x-aws-ec2-metadata-token: a-token");
        match request.line.starts_with("GET /latest/meta-data/spot/instance-action ") {
            true if !may_ask => (401, String::new()),
            true if is_due() => {
                (200, r#"{"action": "terminate", "time": "2026-11-27T16:00:00Z"}"#.into())
            }
            _ => (404, "<html>not found</html>".into()),
        }
    });
    let (output, said) = end_of(watch("aws", &server.address));
    assert_eq!(output, "evicted\n");
    let notice =
        r#"eviction-watch: notice: {"action": "terminate", "time": "2026-11-27T16:00:00Z"}"#;
    assert_eq!(said.trim_end(), notice);
    // A token and a question each time.
    assert_eq!(server.requests().len(), 8);
}

#[test]
fn a_notice_of_google_runs_the_command() {
    if !has_curl("a_notice_of_google_runs_the_command") {
        return;
    }
    let is_due = after(2);
    let server = Metadata::serve(move |request| {
        let is_it = request.line.starts_with("GET /computeMetadata/v1/instance/preempted ");
        match is_it && request.headers.contains("metadata-flavor: google") {
            false => (403, String::new()),
            true if is_due() => (200, "TRUE".into()),
            true => (200, "FALSE".into()),
        }
    });
    let (output, said) = end_of(watch("gcp", &server.address));
    assert_eq!(
        (output.as_str(), said.trim_end()),
        ("evicted\n", "eviction-watch: notice: preempted")
    );
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_notice_of_azure_runs_the_command_if_it_is_for_this_machine() {
    if !has_curl("a_notice_of_azure_runs_the_command_if_it_is_for_this_machine") {
        return;
    }
    let event = |kind: &str, machine: &str| {
        format!(
            r#"{{"EventId":"1","EventStatus":"Scheduled","EventType":"{kind}","ResourceType":"VirtualMachine","Resources":["{machine}","x"],"NotBefore":"Fri, 27 Nov 2026 16:00:00 GMT"}}"#
        )
    };
    let asked = AtomicUsize::new(0);
    let server = Metadata::serve(move |request| {
        if !request.headers.contains("metadata: true") {
            return (400, String::new());
        }
        if request.line.starts_with("GET /metadata/instance/compute/name?") {
            return (200, "worker_7".into());
        }
        // Another one's end, a freeze of ours, and then our end.
        let events = match asked.fetch_add(1, Ordering::Relaxed) {
            0 => String::new(),
            1 => [event("Preempt", "worker_70"), event("Freeze", "worker_7")].join(","),
            _ => [event("Preempt", "worker_70"), event("Preempt", "worker_7")].join(",\n"),
        };
        (200, format!("{{\"DocumentIncarnation\":1,\"Events\":[{events}]}}"))
    });
    let (output, said) = end_of(watch("azure", &server.address));
    assert_eq!(output, "evicted\n");
    assert!(said.contains(r#""EventType":"Preempt""#) && !said.contains("worker_70"), "{said}");
    assert_eq!(server.requests().len(), 6);
}

#[test]
fn a_service_that_does_not_answer_is_asked_again() {
    if !has_curl("a_service_that_does_not_answer_is_asked_again") {
        return;
    }
    let fails = after(2);
    let is_due = after(1);
    let server = Metadata::serve(move |_| match fails() {
        false => (500, String::new()),
        true if is_due() => (200, "TRUE".into()),
        true => (200, "FALSE".into()),
    });
    let (output, said) = end_of(watch("gcp", &server.address));
    assert_eq!(output, "evicted\n");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].ends_with("does not answer; asked again every 0.05 s"), "{said}");
    assert!(lines[1].ends_with("answers again"), "{said}");
}

#[test]
fn the_watcher_s_usage_is_checked() {
    for arguments in [&[][..], &["aws"], &["moon", "true"]] {
        let output = Command::new(contrib("eviction-watch")).args(arguments).output();
        let output = output.expect("start eviction-watch");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    let mut child = watch("aws", "http://127.0.0.1:1");
    // It goes on, and says so.
    let mut said = [0; 14];
    child.stderr.as_mut().expect("its messages").read_exact(&mut said).expect("a message");
    assert_eq!(&said, b"eviction-watch");
    child.kill().expect("kill it");
    child.wait().expect("reap it");
}
