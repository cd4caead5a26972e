//! How a connection to the other host is made.

use super::Token;
use crate::shell::{Part, Shell};
use pipe_io::process;
use std::ffi::OsString;
use std::fmt;
use std::process::Command;
use std::time::Duration;

/// The way to another host.
#[derive(Clone, Debug)]
pub struct Route {
    /// What connects.
    pub connect: Connect,
    /// Options for `criu restore` over there, as its shell takes them.
    pub restore_options: String,
    /// Whether the other end is to say more.
    pub verbose: bool,
    /// How long the other end may take for all.
    pub time_limit: Duration,
    /// How many connections there are.
    pub connections: usize,
    /// Whether an image and its increments are sent.
    pub pre_copy: bool,
}

/// What connects.
#[derive(Clone, Debug)]
pub enum Connect {
    /// ssh.
    Ssh {
        /// The host, as ssh takes it.
        host: OsString,
        /// Words of ssh's command line, before the host.
        options: Vec<OsString>,
    },
    /// Any command of the user's.
    Command(String),
}

impl Route {
    /// The program of one connection, whose standard input and output are to be set.
    pub(crate) fn program(&self, index: usize, token: &Token, shell: &Shell) -> Command {
        let receive = self.receive(index, token);
        let shard = (self.connections > 1).then_some((index, self.connections));
        match &self.connect {
            Connect::Ssh { host, options } => {
                let mut ssh = Command::new("ssh");
                // Of an option that is given twice, ssh takes the first. It cannot ask for a
                // password, having no terminal; and it is to notice a link that is dead.
                ssh.args(options).args(["-o", "BatchMode=yes", "-o", "ServerAliveInterval=5"]);
                ssh.arg("--").arg(host).arg(receive);
                process::as_our_caller(&mut ssh, &[0, 1]);
                process::in_a_new_session(&mut ssh);
                process::with_us(&mut ssh);
                ssh
            }
            Connect::Command(text) => {
                let mut command =
                    shell.command(text, Part { shard, image: None, parent: None }, &[0, 1]);
                command.env("RECEIVE", receive);
                command
            }
        }
    }

    /// What is to run over there.
    fn receive(&self, index: usize, token: &Token) -> String {
        let mut receive = format!(
            "criu-migrate --receive {} --time-limit {}",
            if self.verbose { "--verbose" } else { "--quiet" },
            self.time_limit.as_secs()
        );
        if self.pre_copy {
            receive += " --pre-copy";
        }
        if self.connections > 1 {
            receive += &format!(" --connection {token}:{index}:{}", self.connections);
        }
        if !self.restore_options.is_empty() {
            receive += " ";
            receive += &self.restore_options;
        }
        receive
    }
}

impl fmt::Display for Route {
    /// The other host, in messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.connect {
            Connect::Ssh { host, .. } => write!(f, "{}", host.to_string_lossy()),
            Connect::Command(_) => f.write_str("the other end"),
        }
    }
}
