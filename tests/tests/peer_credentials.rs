//! Only the same user and root are served, even where the socket's permissions would let others
//! in. Alone in its program: it changes the user of all of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::unistd::{Uid, seteuid};
use tempfile::tempdir;
use tests::criu::{DumpClient, RestoreClient};
use tests::filters;
use tests::malformed::small_stream;
use tests::pipeline::{Filter, program};

/// Who runs the filter, and who else comes: nobody in particular.
const OWNER: u32 = 65534;
const STRANGER: u32 = 65533;

#[test]
fn strangers_are_turned_away_and_the_owner_and_root_are_served() {
    if !Uid::effective().is_root() {
        println!("skipped: strangers_are_turned_away: only root can become another user");
        return;
    }
    let there = tempdir().expect("a directory");
    open_to_all(there.path());
    // Where the programs are built nobody else may be allowed to look.
    let copy = |name: &str| {
        fs::copy(program(name), there.path().join(name)).expect("a copy");
        there.path().join(name).display().to_string()
    };
    for user in [OWNER, 0] {
        let dir = there.path().join(format!("capture-{user}"));
        owned_directory(&dir);
        let capture = as_owner("criu-sock-capture", &copy("criu-sock-capture"), &dir);
        let capture = filters::Capture::start(capture);
        open_to_all(&dir.join("streamer-capture.sock"));
        as_user(STRANGER, || {
            let mut stranger = DumpClient::connect(&dir).expect("the socket is there");
            assert!(stranger.was_hung_up_on(), "a stranger is listened to");
        });
        as_user(user, || {
            let mut client = DumpClient::connect(&dir).expect("the capture goes on");
            client.send("inventory.img", b"all").expect("capture reads");
        });
        capture.finish().succeeded();

        let dir = there.path().join(format!("serve-{user}"));
        owned_directory(&dir);
        let serve = as_owner("image-serve", &copy("image-serve"), &dir);
        let serve = filters::start_serve(serve, &small_stream());
        serve.wait_for("socket-init");
        open_to_all(&dir.join("streamer-serve.sock"));
        as_user(STRANGER, || {
            let mut stranger = RestoreClient::connect(&dir).expect("the socket is there");
            assert!(stranger.ask("inventory.img").is_err(), "a stranger is served");
        });
        as_user(user, || {
            let mut client = RestoreClient::connect(&dir).expect("serving goes on");
            let inventory = client.read("inventory.img").expect("a reply");
            assert_eq!(inventory.expect("the inventory"), b"everything");
        });
        serve.finish().succeeded();
    }
}

fn as_owner(name: &str, path: &str, dir: &Path) -> Filter {
    let ids = [format!("--reuid={OWNER}"), format!("--regid={OWNER}")];
    let exec = format!("exec setpriv {} {} --clear-groups {path} \"$@\"", ids[0], ids[1]);
    Filter::under(&["bash", "-c", &exec], name).arg("-D").arg(dir).progress_apart()
}

fn as_user(user: u32, act: impl FnOnce()) {
    seteuid(Uid::from_raw(user)).expect("root can");
    act();
    seteuid(Uid::from_raw(0)).expect("back to root");
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("it is ours");
}

fn owned_directory(path: &Path) {
    fs::create_dir(path).expect("a directory");
    open_to_all(path);
    chown(path, Some(OWNER), Some(OWNER)).expect("root can");
}
