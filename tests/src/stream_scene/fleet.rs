//! The processes, and what they go through.

use std::{path::Path, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{INSTANCE, LEASE, SOON, ledger::Ledger};
use crate::{
    proxy::{Proxy, Weather},
    redis::RedisServer,
};

/// What the processes went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// `kill -9`.
    pub kills: usize,
    /// `kill -STOP`, for longer than the lease.
    pub stops: usize,
    /// Connections that were cut, in the middle of an answer or all at once.
    pub cuts: usize,
    /// `SCRIPT FLUSH`.
    pub flushes: usize,
}

pub(super) struct Fleet<'a> {
    program: &'a Path,
    server: &'a RedisServer,
    ledger: &'a Ledger,
    how: &'static str,
    processes: Vec<Process>,
    /// Processes that are stopped for a while.
    stopped: JoinSet<()>,
    pub(super) faults: Faults,
}

struct Process {
    child: Child,
    /// It ends when this is closed.
    input: ChildStdin,
    proxy: Proxy,
}

impl<'a> Fleet<'a> {
    /// Starts processes. `how`: see [`INSTANCE`].
    pub(super) async fn start(
        program: &'a Path,
        server: &'a RedisServer,
        ledger: &'a Ledger,
        many: usize,
        how: &'static str,
    ) -> Self {
        let mut fleet = Self {
            program,
            server,
            ledger,
            how,
            processes: Vec::new(),
            stopped: JoinSet::new(),
            faults: Faults::default(),
        };
        for _ in 0..many {
            let process = fleet.launch().await;
            fleet.processes.push(process);
        }
        fleet
    }

    async fn launch(&self) -> Process {
        let server = self.server.addr().parse().expect("an address");
        let proxy = Proxy::to(server).await.expect("a port");
        let url = format!("redis://{}", proxy.address());
        let mut child = Command::new(self.program)
            .args([INSTANCE, &url, &self.ledger.address.to_string(), self.how])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let input = child.stdin.take().expect("its input");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let line = timeout(SOON, lines.next_line()).await.expect("in time");
        assert_eq!(line.expect("text").as_deref(), Some("ready"));
        Process {
            child,
            input,
            proxy,
        }
    }

    /// The next of all kinds of faults, to a process by chance.
    pub(super) async fn suffer(&mut self, number: usize) {
        let at = fastrand::usize(..self.processes.len());
        match number % 4 {
            0 => self.kill(at).await,
            1 => self.stop(at),
            2 => self.cut(at).await,
            _ => {
                assert_eq!(self.server.command("SCRIPT FLUSH"), "OK");
                self.faults.flushes += 1;
            }
        }
    }

    /// Kills a process, and starts another one.
    async fn kill(&mut self, at: usize) {
        self.processes[at].child.kill().await.expect("kill -9");
        self.processes[at] = self.launch().await;
        self.faults.kills += 1;
    }

    /// Kills the process with this id.
    pub(super) async fn kill_one(&mut self, id: u32) {
        let of = |it: &Process| it.child.id() == Some(id);
        let at = self.processes.iter().position(of).expect("one of them");
        self.processes[at].child.kill().await.expect("kill -9");
        self.processes.remove(at);
        self.faults.kills += 1;
    }

    pub(super) async fn add(&mut self) {
        let process = self.launch().await;
        self.processes.push(process);
    }

    /// Stops a process for longer than its leases last.
    fn stop(&mut self, at: usize) {
        let id = self.processes[at].child.id().expect("it runs");
        let pid = Pid::from_raw(id.cast_signed()).expect("a process id");
        if kill_process(pid, Signal::STOP).is_err() {
            return;
        }
        self.stopped.spawn(async move {
            sleep(LEASE * 3 / 2).await;
            // It may have been killed meanwhile.
            let _ = kill_process(pid, Signal::CONT);
        });
        self.faults.stops += 1;
    }

    /// Cuts the connections of a process: all at once, and then each after a few bytes of an answer.
    async fn cut(&mut self, at: usize) {
        let proxy = &mut self.processes[at].proxy;
        proxy.set(Weather::Reset).await;
        proxy
            .set(Weather::CutAfter(fastrand::usize(500..20_000)))
            .await;
        sleep(Duration::from_millis(100)).await;
        proxy.set(Weather::Fine).await;
        self.faults.cuts += 1;
    }

    /// Ends all processes gracefully; the number of those that did not end.
    pub(super) async fn end(mut self) -> usize {
        while self.stopped.join_next().await.is_some() {}
        let mut hung = 0;
        for process in self.processes {
            let Process {
                mut child, input, ..
            } = process;
            drop(input);
            let ended = timeout(SOON, child.wait()).await;
            hung += usize::from(!ended.is_ok_and(|it| it.is_ok_and(|it| it.success())));
        }
        hung
    }
}
