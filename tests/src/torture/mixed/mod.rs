//! Processes that use every pattern on one Redis, and count what it must not do: take effect twice, answer with another key's
//! outcome, exceed a limit, or leave breakers that do not agree.
//!
//! `worker` is one of the processes, `dependency` what they all call, in the process that counts; here is the fleet of them.

mod dependency;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::{Instant, sleep, timeout},
};

use self::dependency::Dependency;
pub use self::worker::mixed;
use super::switch::PLACES;

/// Calls a second that the limit admits, and its burst.
const RATE: u64 = 50;
/// Keys that begin to be used in a second.
const KEYS_PER_SECOND: u64 = 50;
const SOON: Duration = Duration::from_secs(30);
/// What the first line of a process says: the words that its arguments and lines are in.
const READY: &str = "ready mixed 1";

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Mixed {
    /// Keys with an outcome that a caller has received.
    pub keys: usize,
    /// Calls with a key that were told an outcome.
    pub told: usize,
    /// Keys whose work took effect more than once.
    pub twice: usize,
    /// Calls that were told the outcome of another key, or one that is not that of the first effect.
    pub foreign: usize,
    /// Keys that took effect, and whose callers were told that the outcome is unknown, in the end.
    pub unknown: usize,
    /// Calls that the limit admitted.
    pub admitted: u64,
    /// Calls that it may admit in that time.
    pub allowed: u64,
    /// Most calls in the bulkhead at once.
    pub peak: usize,
    /// For how long more were in it than there are places.
    pub above: Duration,
    /// Times that breakers and record did not agree, with the dependency well or away for long.
    pub disagreed: usize,
    /// Processes that did not end by their SIGTERM.
    pub hung: usize,
    /// Events that the store was unavailable because it did not answer in time: the machine is busy.
    pub slow: usize,
    /// Other events of the levels WARN and ERROR, by their text; without those that a breaker changed its state.
    pub warnings: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Tally {
    told: HashMap<usize, BTreeSet<String>>,
    calls: usize,
    unknown: BTreeSet<usize>,
    admitted: u64,
    /// By process.
    states: BTreeMap<usize, String>,
    slow: usize,
    warnings: BTreeMap<String, usize>,
}

/// The processes.
pub(super) struct Fleet {
    url: String,
    shares: bool,
    dependency: Dependency,
    began: Instant,
    processes: Vec<Process>,
    started: usize,
    disagreed: usize,
    hung: usize,
    tally: Arc<Mutex<Tally>>,
}

struct Process {
    number: usize,
    child: Child,
    /// It ends when this is closed.
    _input: ChildStdin,
    /// Reads its output.
    reading: tokio::task::JoinHandle<()>,
}

impl Fleet {
    /// A fleet without processes yet. Those of one that does not `shares` have keys of their own, each: to see that what that
    /// does is noticed.
    pub(super) async fn open(url: String, shares: bool) -> Self {
        Self {
            url,
            shares,
            dependency: Dependency::open().await,
            began: Instant::now(),
            processes: Vec::new(),
            started: 0,
            disagreed: 0,
            hung: 0,
            tally: Arc::default(),
        }
    }

    /// Starts one more process. `program` is a binary `torture`. The error: it does not know what it is to do.
    pub(super) async fn start(&mut self, program: &Path) -> Result<(), String> {
        let process = self.launch(program).await?;
        self.processes.push(process);
        Ok(())
    }

    /// Starts a process in place of another one, which then gets a SIGTERM.
    pub(super) async fn replace(&mut self, slot: usize, program: &Path) -> Result<(), String> {
        let next = self.launch(program).await?;
        let former = std::mem::replace(&mut self.processes[slot], next);
        self.terminate(former).await;
        Ok(())
    }

    async fn launch(&mut self, program: &Path) -> Result<Process, String> {
        let from = self.began.elapsed().as_secs() * KEYS_PER_SECOND;
        let prefix = match self.shares {
            true => "torture".to_owned(),
            false => format!("torture-{}", self.started),
        };
        let mut child = Command::new(program)
            .args(["mixed", &self.url, &self.dependency.address.to_string()])
            .args([from.to_string(), prefix])
            .args([RATE.to_string(), PLACES.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|why| format!("{}: {why}", program.display()))?;
        let input = child.stdin.take().expect("its input");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        self.started += 1;
        let (number, tally) = (self.started, Arc::clone(&self.tally));
        loop {
            let line = timeout(SOON, lines.next_line()).await.expect("in time");
            let line = line.expect("text").unwrap_or_default();
            match line.split_once(' ') {
                _ if line == READY => break,
                Some(("warning" | "state", _)) => lock(&tally).note(number, &line),
                _ => {
                    return Err(format!(
                        "{} does not run `torture mixed` as this program does: it says {line:?} in place of {READY:?}",
                        program.display()
                    ));
                }
            }
        }
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                lock(&tally).note(number, &line);
            }
        });
        Ok(Process {
            number,
            child,
            _input: input,
            reading,
        })
    }

    /// As an orchestrator ends a process: gracefully.
    async fn terminate(&mut self, mut process: Process) {
        let id = process.child.id().expect("it runs");
        let pid = Pid::from_raw(id.cast_signed()).expect("a process id");
        kill_process(pid, Signal::TERM).expect("it can be signalled");
        let ended = timeout(SOON, process.child.wait()).await;
        let is_well = ended.is_ok_and(|status| status.is_ok_and(|status| status.success()));
        self.hung += usize::from(!is_well);
        // All that it has said counts.
        let _ = timeout(SOON, process.reading).await;
        lock(&self.tally).states.remove(&process.number);
    }

    /// The dependency fails, or is well again; every breaker has to say so.
    pub(super) async fn dependency_is(&mut self, well: bool) {
        self.dependency.set_well(well);
        let wanted = if well { "closed" } else { "open" };
        let agree = async {
            loop {
                {
                    let tally = lock(&self.tally);
                    let mut states = self.processes.iter().map(|it| tally.states.get(&it.number));
                    if states.all(|state| state.is_some_and(|state| state == wanted)) {
                        return;
                    }
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        self.disagreed += usize::from(timeout(SOON, agree).await.is_err());
    }

    /// All processes end gracefully. `bursts`: how often the limit's burst may have been admitted.
    pub(super) async fn end(mut self, bursts: u64) -> Mixed {
        for process in std::mem::take(&mut self.processes) {
            self.terminate(process).await;
        }
        let took = self.began.elapsed();
        let tally = lock(&self.tally);
        let effects = self.dependency.effects();
        let is_foreign = |key: usize, outcome: &String| *outcome != format!("{key}:1");
        let foreign = tally.told.iter().map(|(key, outcomes)| {
            let foreign = outcomes.iter().filter(|told| is_foreign(*key, told));
            foreign.count()
        });
        let unknown = tally.unknown.iter();
        let unknown = unknown.filter(|key| !tally.told.contains_key(key));
        let (peak, above) = self.dependency.places();
        Mixed {
            keys: tally.told.len(),
            told: tally.calls,
            twice: effects.values().filter(|effects| **effects > 1).count(),
            foreign: foreign.sum(),
            unknown: unknown.count(),
            admitted: tally.admitted,
            allowed: RATE * bursts + (RATE as f64 * took.as_secs_f64()).ceil() as u64,
            peak,
            above,
            disagreed: self.disagreed,
            hung: self.hung,
            slow: tally.slow,
            warnings: tally.warnings.clone(),
        }
    }
}

impl Tally {
    fn note(&mut self, process: usize, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
        match (word, first.parse::<usize>()) {
            ("told", Ok(key)) => {
                self.calls += 1;
                self.told.entry(key).or_default().insert(second.to_owned());
            }
            ("unknown", Ok(key)) => drop(self.unknown.insert(key)),
            ("admitted", Ok(calls)) => self.admitted += calls as u64,
            ("state", _) => drop(self.states.insert(process, rest.to_owned())),
            ("warning", _) if rest.contains("state changed") => {}
            ("warning", _) if is_slow(rest) => self.slow += 1,
            ("warning", _) => *self.warnings.entry(rest.to_owned()).or_default() += 1,
            _ => {}
        }
    }
}

/// Whether an event tells of answers that did not come in time, or of what that led to.
fn is_slow(event: &str) -> bool {
    [
        "store unavailable",
        "store available",
        "no answer",
        "not answer",
    ]
    .iter()
    .any(|words| event.contains(words))
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
