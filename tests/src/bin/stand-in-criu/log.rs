//! The log file, in CRIU's form.

use std::fs::File;
use std::io::Write;
use std::time::Instant;

use crate::options::Options;

/// Where all is noted. Without `-o`, on standard error.
#[derive(Debug)]
pub(crate) struct Log {
    file: Option<File>,
    began: Instant,
}

impl Log {
    pub(crate) fn open(options: &Options) -> Log {
        let path = options.log_file.as_ref().map(|name| options.work_dir().join(name));
        Log { file: path.and_then(|path| File::create(path).ok()), began: Instant::now() }
    }

    pub(crate) fn say(&self, message: &str) {
        self.write(message);
    }

    pub(crate) fn error(&self, message: &str) {
        self.write(&format!("Error (stand-in.c:1): {message}"));
    }

    fn write(&self, message: &str) {
        let line = format!("({:09.6}) {message}\n", self.began.elapsed().as_secs_f64());
        // A disk that is full stops CRIU's log, and nothing else.
        let _ = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}
