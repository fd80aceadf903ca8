//! Programs of the tests as processes of their own, told what to do a line at a time, killed and stopped at will.

use std::{cell::Cell, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::redis_scene::SOON;

/// Its input and output.
type Talk = (ChildStdin, Lines<BufReader<ChildStdout>>);

/// A process that answers every line it is sent with one. Ends with the value, and with this process: its input ends
/// then.
pub struct Process {
    child: Child,
    talk: Cell<Option<Talk>>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("child", &self.child)
            .finish_non_exhaustive()
    }
}

impl Process {
    /// Starts `program`, and waits until it says `ready`.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub async fn start(program: &str, args: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let input = child.stdin.take().expect("its input");
        let output = BufReader::new(child.stdout.take().expect("its output")).lines();
        let process = Self {
            child,
            talk: Cell::new(Some((input, output))),
        };
        assert_eq!(process.answer().await, "ready");
        process
    }

    async fn answer(&self) -> String {
        let mut talk = self.talk.take().expect("one question at a time");
        let line = timeout(SOON, talk.1.next_line()).await;
        self.talk.set(Some(talk));
        line.expect("an answer in time")
            .expect("an answer")
            .expect("it lives")
    }

    /// Sends a line, and waits for the answer.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub async fn ask(&self, line: &str) -> String {
        let mut talk = self.talk.take().expect("one question at a time");
        let line = format!("{line}\n");
        talk.0.write_all(line.as_bytes()).await.expect("it listens");
        self.talk.set(Some(talk));
        self.answer().await
    }

    /// As above, for an answer that is a number.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub async fn number(&self, line: &str) -> u64 {
        let answer = self.ask(line).await;
        answer
            .parse()
            .unwrap_or_else(|_| panic!("{line}: {answer}"))
    }

    /// Sends `signal` to the process.
    ///
    /// # Panics
    ///
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        let pid = Pid::from_raw(id.try_into().expect("a process id")).expect("a process id");
        kill_process(pid, signal).expect("it can be signalled");
    }
}
