//! How the processes of servers end for sure, however the test that started them ends.
//!
//! Each server runs under a little shell that holds the read end of a pipe whose other end is ours. Dropping our end
//! closes it; so does the kernel if this process is killed. The shell then ends the server and removes its
//! directory. (`PR_SET_PDEATHSIG` will not do: it fires when the *thread* that started the child ends, and the test
//! runner gives each test a thread of its own.)

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

/// Runs the server, tells its process id, and waits for our word. No word at all, because we are gone, ends the
/// server and removes its directory; any word ends the server only. The signals that end a test run by hand go to
/// the whole terminal: this shell must outlive them to clean up.
const KEEPER: &str = r#"
trap '' HUP INT TERM
directory=$1
signal=$2
shift 2
"$@" </dev/null >"$directory/log" 2>&1 &
echo $!
exec >/dev/null 2>&1
read -r word
kill -CONT $!
kill -"$signal" $!
wait $!
[ -n "$word" ] || { cd / && rm -rf "$directory"; }
"#;

/// A server and the shell that sees to its end.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    shell: Child,
    server: Pid,
}

impl ChildProcess {
    /// Starts `server`, a program with its arguments, in `directory`, where its output goes to `log`. `shell` is a
    /// command for `/bin/sh`, of whatever user; `signal` ends the server, in the words of `kill`.
    pub(crate) fn start(
        mut shell: Command,
        directory: &Path,
        signal: &str,
        program: &Path,
        args: &[String],
    ) -> Self {
        let mut shell = shell
            .args(["-c", KEEPER, "server-keeper"])
            .arg(directory)
            .arg(signal)
            .arg(program)
            .args(args)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("a shell runs");
        let mut line = String::new();
        let told = shell
            .stdout
            .take()
            .map(|stdout| BufReader::new(stdout).read_line(&mut line));
        let server = line.trim().parse().ok().and_then(Pid::from_raw);
        let server = server
            .unwrap_or_else(|| panic!("the shell said {line:?} ({told:?}), not a process id"));
        Self { shell, server }
    }

    /// The server's (main) process.
    pub(crate) const fn server(&self) -> Pid {
        self.server
    }

    /// Ends the server and removes its directory.
    pub(crate) fn end(mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }

    /// Ends the server, if it still runs, and leaves its directory as it is.
    pub(crate) fn end_but_keep_the_data(mut self) {
        if let Some(mut stdin) = self.shell.stdin.take() {
            let _ = stdin.write_all(b"keep\n");
        }
        let _ = self.shell.wait();
    }
}

/// Sends `signal`; the process may have ended by itself a moment ago.
pub(crate) fn signal(process: Pid, signal: Signal) {
    let _ = kill_process(process, signal);
}
