//! What the environment asks for.

use crate::Error;
use crate::cases::{Contender, Work};
use std::env;
use std::path::PathBuf;
use std::str::FromStr;

/// The options of a run; see `USAGE` in main.rs.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) megabytes: usize,
    pub(crate) rounds: usize,
    only: Vec<String>,
    pub(crate) tuned: Option<bool>,
    pub(crate) criu_megabytes: usize,
    pub(crate) base: Option<PathBuf>,
    pub(crate) peer: Option<PathBuf>,
    pub(crate) criu: PathBuf,
}

impl Options {
    /// 2 GiB take a tenth of a second at the speed of the kernel, and image-serve about a second:
    /// with less, starting and ending the filters shows; with more, the run takes longer than
    /// five minutes.
    const MEGABYTES: usize = 2048;
    /// The median of five shrugs off two rounds in which the machine did something else.
    const ROUNDS: usize = 5;
    const CRIU_MEGABYTES: usize = 3072;

    pub(crate) fn from_environment() -> Result<Options, Error> {
        let only = env::var("BENCH_ONLY").unwrap_or_default();
        Ok(Options {
            megabytes: number("BENCH_MB", Options::MEGABYTES)?,
            rounds: number("BENCH_ROUNDS", Options::ROUNDS)?,
            only: only.split(',').filter(|part| !part.is_empty()).map(String::from).collect(),
            tuned: match env::var("BENCH_TUNED").as_deref() {
                Ok("1") => Some(true),
                Ok("0") => Some(false),
                Ok("") | Err(_) => None,
                Ok(other) => return Err(format!("BENCH_TUNED={other}: neither 0 nor 1").into()),
            },
            criu_megabytes: number("BENCH_CRIU_MB", Options::CRIU_MEGABYTES)?,
            base: path("BASE"),
            peer: path("PEER"),
            criu: path("CRIU").unwrap_or_else(|| "criu".into()),
        })
    }

    /// Who competes.
    pub(crate) fn contenders(&self, work: &Work) -> Vec<Contender> {
        let is_there = |contender: &Contender| match contender {
            Contender::Base => self.base.is_some(),
            Contender::Peer => self.peer.is_some(),
            _ => true,
        };
        work.contenders().iter().copied().filter(is_there).collect()
    }

    /// Whether the case is asked for.
    pub(crate) fn wants(&self, case: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| case.contains(part.as_str()))
    }
}

/// Where `results.json` is.
pub(crate) fn output_directory() -> PathBuf {
    env::var_os("BENCH_OUT").map_or_else(|| "target/bench".into(), PathBuf::from)
}

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn number(name: &str, default: usize) -> Result<usize, Error> {
    match env::var(name) {
        Ok(text) if !text.is_empty() => match usize::from_str(&text) {
            Ok(number @ 1..) => Ok(number),
            _ => Err(format!("{name}={text}: not a positive number").into()),
        },
        _ => Ok(default),
    }
}
