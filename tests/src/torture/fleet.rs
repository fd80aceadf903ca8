//! The processes, and what they go through.

use std::{collections::HashSet, path::Path, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgPool;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Plan,
    checker::{Findings, Tellings, balance},
    subject::{Client, Subject, set_up},
    worker::{Task, name},
};
use crate::{
    postgres::Postgres,
    proxy::{Proxy, Weather},
    redis::RedisServer,
};

/// What the processes went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// `kill -9`.
    pub kills: usize,
    /// `kill -STOP`, for longer than any lease.
    pub stops: usize,
    /// Lines that were cut, in the middle of an answer or all at once.
    pub cuts: usize,
    /// Lines that were slow, or silent.
    pub delays: usize,
    /// `SCRIPT FLUSH`.
    pub flushes: usize,
    /// Callers that hung up and asked again; of processes that lived to the end.
    pub hung_up: usize,
    /// Attempts that came too late, and were refused by the fence in the database.
    pub fenced: usize,
    /// Attempts after one that may have done the work.
    pub doubted: usize,
    /// Of those, the ones after an attempt that had done it.
    pub found: usize,
}

/// How long a process is stopped, or a line is bad.
const SPELL: Duration = Duration::from_millis(900);

struct Worker {
    task: Task,
    told: HashSet<usize>,
    proxy: Proxy,
    /// Counts the processes that were started for it.
    life: usize,
    process: Option<(Child, ChildStdin)>,
    done: bool,
}

/// What a process says.
#[derive(Clone, Copy)]
enum Message {
    Told {
        call: usize,
        key: usize,
        outcome: i64,
    },
    End {
        hung_up: usize,
    },
    /// Its work begins, or has just taken effect, and is not recorded yet.
    AtWork,
    Fenced,
    Doubted,
    Found,
}

type Hearsay = mpsc::UnboundedSender<(usize, usize, Message)>;

/// What is to be set right, and when.
#[derive(Clone, Copy)]
enum Cure {
    Continue(usize),
    Fine(usize),
    Restart(usize),
}

pub(super) async fn run(
    plan: &Plan,
    program: &Path,
    postgres: &Postgres,
    redis: &RedisServer,
) -> (Findings, Faults) {
    let pool = PgPool::connect(&postgres.url())
        .await
        .expect("a connection");
    set_up(&pool, plan.keys).await;
    let mut fleet = Fleet::start(plan, program, postgres, redis).await;
    fleet.endure().await;
    let stuck = fleet.quiet_round().await;
    let told = fleet.workers.iter().map(|worker| worker.told.len()).sum();
    (
        balance(&pool, told, &fleet.tellings, stuck).await,
        fleet.faults,
    )
}

struct Fleet<'a> {
    plan: &'a Plan,
    program: &'a Path,
    workers: Vec<Worker>,
    random: fastrand::Rng,
    faults: Faults,
    tellings: Tellings,
    hear: Hearsay,
    heard: mpsc::UnboundedReceiver<(usize, usize, Message)>,
    cures: Vec<(Instant, Cure)>,
    postgres: &'a Postgres,
    redis: &'a RedisServer,
}

impl<'a> Fleet<'a> {
    async fn start(
        plan: &'a Plan,
        program: &'a Path,
        postgres: &'a Postgres,
        redis: &'a RedisServer,
    ) -> Self {
        let (hear, heard) = mpsc::unbounded_channel();
        let weak = match plan.subject {
            Subject::Inbox => postgres.address(),
            Subject::Redis => redis.addr().parse().expect("an address"),
        };
        let mut workers = Vec::new();
        for worker in 0..plan.workers {
            let proxy = Proxy::to(weak).await.expect("a port");
            let task = Task {
                worker,
                from: 0,
                to: plan.operations / plan.workers,
                keys: plan.keys,
            };
            workers.push(Worker {
                task,
                told: HashSet::new(),
                proxy,
                life: 0,
                process: None,
                done: false,
            });
        }
        let mut fleet = Self {
            plan,
            program,
            workers,
            random: fastrand::Rng::with_seed(plan.seed),
            faults: Faults::default(),
            tellings: Tellings::new(),
            hear,
            heard,
            cures: Vec::new(),
            postgres,
            redis,
        };
        (0..plan.workers).for_each(|worker| fleet.launch(worker));
        fleet
    }

    /// Starts a process for what is left of the worker's calls.
    fn launch(&mut self, worker: usize) {
        let it = &mut self.workers[worker];
        it.life += 1;
        it.task.from = (0..it.task.to)
            .find(|call| !it.told.contains(call))
            .unwrap_or(it.task.to);
        let Task { from, to, keys, .. } = it.task;
        let line = it.proxy.address();
        let (database, redis) = match self.plan.subject {
            Subject::Inbox => (
                format!("postgres://postgres@{line}/postgres"),
                self.redis.url(),
            ),
            Subject::Redis => (self.postgres.url(), format!("redis://{line}")),
        };
        let mut child = Command::new(self.program)
            .args(["worker", &self.plan.subject.to_string(), &database, &redis])
            .args([worker, from, to, keys].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let (hear, life) = (self.hear.clone(), it.life);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(said) = parse(&line) {
                    let _ = hear.send((worker, life, said));
                }
            }
        });
        let input = child.stdin.take().expect("its input");
        it.process = Some((child, input));
    }

    /// Until all calls of all processes were told an outcome.
    async fn endure(&mut self) {
        let mut next_fault = Instant::now() + self.plan.calm;
        while self.workers.iter().any(|worker| !worker.done) || !self.cures.is_empty() {
            let cure = self.cures.iter().map(|(at, _)| *at).min();
            let next = cure.map_or(next_fault, |cure| cure.min(next_fault));
            tokio::select! {
                Some((worker, life, said)) = self.heard.recv() => self.note(worker, life, said),
                () = sleep_until(next) => {
                    let now = Instant::now();
                    self.cure(now).await;
                    if now >= next_fault {
                        self.fault().await;
                        next_fault = now + self.plan.calm;
                    }
                }
            }
        }
    }

    fn note(&mut self, worker: usize, life: usize, said: Message) {
        let it = &mut self.workers[worker];
        match said {
            // Whatever was told was told, also by a process that is dead by now.
            Message::Told { call, key, outcome } => {
                it.told.insert(call);
                self.tellings.entry(key).or_default().insert(outcome);
            }
            Message::End { hung_up } if life == it.life => {
                it.done = true;
                self.faults.hung_up += hung_up;
            }
            Message::End { .. } => {}
            Message::AtWork if life == it.life && self.random.u8(..12) == 0 => self.ambush(worker),
            Message::AtWork => {}
            Message::Fenced => self.faults.fenced += 1,
            Message::Doubted => self.faults.doubted += 1,
            Message::Found => self.faults.found += 1,
        }
    }

    async fn fault(&mut self) {
        if self.plan.subject == Subject::Redis && self.random.u8(..4) == 0 {
            let _ = self.redis.command("SCRIPT FLUSH");
            self.faults.flushes += 1;
        }
        let worker = self.random.usize(..self.workers.len());
        if !self.may_suffer(worker) {
            return;
        }
        let (now, it) = (Instant::now(), &mut self.workers[worker]);
        match self.random.u8(..6) {
            0 | 1 => self.kill(worker),
            2 => self.stop(worker),
            3 => {
                it.proxy.set(Weather::Reset).await;
                self.faults.cuts += 1;
                self.cures
                    .push((Instant::now() + SPELL / 9, Cure::Fine(worker)));
            }
            4 => {
                it.proxy
                    .set(Weather::CutAfter(self.random.usize(1..4_000)))
                    .await;
                self.faults.cuts += 1;
                self.cures.push((now + SPELL, Cure::Fine(worker)));
            }
            _ => {
                let bad = match self.random.bool() {
                    true => Weather::Blackhole,
                    false => Weather::Latency(SPELL / 10),
                };
                it.proxy.set(bad).await;
                self.faults.delays += 1;
                self.cures.push((now + SPELL, Cure::Fine(worker)));
            }
        }
    }

    /// Whether nothing is wrong with it at the moment.
    fn may_suffer(&self, worker: usize) -> bool {
        let suffers = self.cures.iter().any(|(_, cure)| {
            matches!(cure, Cure::Continue(of) | Cure::Fine(of) | Cure::Restart(of) if *of == worker)
        });
        !suffers && !self.workers[worker].done
    }

    /// At the worst moment.
    fn ambush(&mut self, worker: usize) {
        match self.may_suffer(worker) {
            true if self.random.bool() => self.kill(worker),
            true => self.stop(worker),
            false => {}
        }
    }

    fn kill(&mut self, worker: usize) {
        signal(&self.workers[worker], Signal::KILL);
        self.faults.kills += 1;
        // It comes back while what it left behind is still there.
        self.cures
            .push((Instant::now() + SPELL / 9, Cure::Restart(worker)));
    }

    fn stop(&mut self, worker: usize) {
        signal(&self.workers[worker], Signal::STOP);
        self.faults.stops += 1;
        self.cures
            .push((Instant::now() + SPELL, Cure::Continue(worker)));
    }

    async fn cure(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.cures)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.cures = later;
        let due: Vec<(Instant, Cure)> = due;
        for (_, cure) in due {
            match cure {
                Cure::Continue(worker) => signal(&self.workers[worker], Signal::CONT),
                Cure::Fine(worker) => self.workers[worker].proxy.set(Weather::Fine).await,
                Cure::Restart(worker) => self.launch(worker),
            }
        }
    }

    /// All is quiet: each key can be had now, and soon. How many cannot.
    async fn quiet_round(&mut self) -> usize {
        let client = Client::new(self.plan.subject, &self.postgres.url(), &self.redis.url());
        let mut stuck = 0;
        for key in 0..self.plan.keys {
            let mut told = None;
            for _ in 0..50 {
                told = client.ask(&name(key), -1).await;
                if told.is_some() {
                    break;
                }
                sleep(Duration::from_millis(100)).await;
            }
            match told {
                Some(outcome) => {
                    self.tellings.entry(key).or_default().insert(outcome);
                }
                None => stuck += 1,
            }
        }
        stuck
    }
}

fn signal(worker: &Worker, signal: Signal) {
    let id = worker.process.as_ref().and_then(|(child, _)| child.id());
    if let Some(pid) = id.and_then(|id| Pid::from_raw(id.cast_signed())) {
        let _ = kill_process(pid, signal);
    }
}

fn parse(line: &str) -> Option<Message> {
    let words: Vec<&str> = line.split(' ').collect();
    Some(match words[..] {
        ["told", call, key, outcome] => Message::Told {
            call: call.parse().ok()?,
            key: key.parse().ok()?,
            outcome: outcome.parse().ok()?,
        },
        ["end", hung_up] => Message::End {
            hung_up: hung_up.parse().ok()?,
        },
        ["work"] => Message::AtWork,
        ["fenced"] => Message::Fenced,
        ["doubted"] => Message::Doubted,
        ["found"] => Message::Found,
        _ => return None,
    })
}
