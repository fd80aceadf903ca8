//! Redis servers whose clock a test sets: forward, back, to and fro.
//!
//! A small library in C shifts the server's wall clock by what a file says. It is compiled when it is first needed, by the `cc`
//! that Rust links with, and preloaded into the server. (`libfaketime` clashes with Redis' allocator.)

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use tempfile::TempDir;

use crate::redis::RedisServer;

/// The clock of one server.
#[derive(Debug)]
pub struct Clock {
    dir: TempDir,
}

impl Clock {
    /// A clock that shows the time of this machine.
    ///
    /// # Panics
    /// When there is no place for its file.
    #[must_use]
    pub fn new() -> Self {
        let clock = Self {
            dir: tempfile::tempdir().expect("a directory"),
        };
        clock.shift(0);
        clock
    }

    /// Starts a server by this clock, with further arguments.
    #[must_use]
    pub fn start(&self, args: &[&str]) -> RedisServer {
        let library = format!("LD_PRELOAD={}", library().display());
        let shift = format!("CLOCK_SHIFT={}", self.file().display());
        RedisServer::start_in(&[library, shift], args)
    }

    /// Sets the clock ahead of this machine's.
    pub fn set_ahead(&self, by: Duration) {
        self.shift(micros(by));
    }

    /// Sets the clock behind this machine's.
    pub fn set_back(&self, by: Duration) {
        self.shift(-micros(by));
    }

    fn shift(&self, micros: i64) {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.file());
        // In one piece: the server reads it all the time.
        let written = file.and_then(|file| file.write_all_at(&micros.to_ne_bytes(), 0));
        written.expect("the clock's file");
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("shift")
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).expect("a short time")
}

/// The library, compiled beside the program that runs, unless an earlier run has done so.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        const SOURCE: &str = include_str!("clock.c");
        let mut hasher = DefaultHasher::new();
        SOURCE.hash(&mut hasher);
        let program = env::current_exe().expect("a path");
        let folder = program.parent().expect("a folder");
        let library = folder.join(format!("clock-{:x}.so", hasher.finish()));
        if !library.exists() {
            let dir = tempfile::tempdir_in(folder).expect("a directory");
            let (source, built) = (dir.path().join("clock.c"), dir.path().join("clock.so"));
            fs::write(&source, SOURCE).expect("a file");
            let compiled = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .args([&built, &source])
                .status();
            let compiled = compiled.expect("`cc`, which Rust needs as well");
            assert!(compiled.success(), "it compiles");
            // Another process may be doing the same.
            fs::rename(built, &library).expect("it is put into its place");
        }
        library
    })
}
