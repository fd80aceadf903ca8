//! One command: its budget, and whether its answer, or its error, can be believed.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use resilience_core::{Verdict, completion::Guard};

use super::{
    guards::{GUARD, SUSPICIOUS},
    nonce::Nonce,
    shared::{Live, Shared},
};
use crate::{
    error::{CommandError, code, elsewhere_after, is_broken},
    transport::Transport,
};

/// Why a command has no answer that counts.
pub(super) enum Failure {
    Redis(RedisError),
    /// The answer belongs to another command.
    Misplaced,
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

impl Shared {
    /// Runs `work`, about a key or about all servers, on the connection, within the budget.
    pub(super) async fn carry<T, F>(
        &self,
        key: Option<&str>,
        work: impl FnOnce(Transport) -> F,
    ) -> Result<T, CommandError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let live = self.current.load_full().ok_or(CommandError::Down)?;
        let guard = self.guards.of(key);
        let mut permit = guard.acquire().map_err(|_| CommandError::CircuitOpen)?;
        let Some(answer) = self.budget.within(work(live.transport.clone())).await else {
            permit.settle(Verdict::transient());
            self.note_timeout();
            return Err(CommandError::TimedOut);
        };
        let answer = answer.map_err(|failure| match failure {
            Failure::Redis(error) => self.examine(&live, &error),
            Failure::Misplaced => self.misplaced(&live),
        });
        match &answer {
            Err(CommandError::TimedOut | CommandError::Lost(_)) => {
                permit.settle(Verdict::transient());
            }
            // An error that Redis sends is an answer.
            _ => {
                permit.settle(Verdict::Success);
                self.note_answer();
            }
        }
        answer
    }

    /// Decides what a command about `key` that ended in `error` comes to. An error names no command, so it is believed when
    /// the connection then gives the right answer to a PING, or refuses that in the same way (busy, loading).
    pub(super) async fn confirm(
        &self,
        mut transport: Transport,
        key: &str,
        error: RedisError,
    ) -> Failure {
        if !is_final_answer(&error) {
            return error.into();
        }
        let echo = self.nonces.next();
        match transport.echo(key, echo.as_bytes()).await {
            Ok(answer) if !echo.is_echoed(&answer) => Failure::Misplaced,
            Ok(_) => error.into(),
            Err(broken) if is_broken(&broken) => broken.into(),
            Err(refusal) if is_same_refusal(&refusal, &error) => error.into(),
            Err(_) => Failure::Misplaced,
        }
    }

    /// Repeats a read between two PINGs. A right answer to one PING would prove nothing of an answer before it: a client that
    /// was sent one answer too many drops the last of those that it has, and is in step again.
    pub(super) async fn read_in_place(
        &self,
        mut transport: Transport,
        key: &str,
        cmd: &Cmd,
    ) -> Result<Value, Failure> {
        let (first, last) = (self.nonces.next(), self.nonces.next());
        let (before, after) = (ping(&first), ping(&last));
        let answers = transport.send_in_order(key, &[&before, cmd, &after]).await;
        let answers = match answers {
            Ok(answers) => <[Value; 3]>::try_from(answers),
            Err(error) => return Err(self.confirm(transport, key, error).await),
        };
        match answers {
            Ok([one, answer, other]) if first.is_echoed(&one) && last.is_echoed(&other) => {
                Ok(answer)
            }
            _ => Err(Failure::Misplaced),
        }
    }

    /// Notes what an error says about the connection that it came over.
    fn examine(&self, live: &Live, error: &RedisError) -> CommandError {
        let is_cluster = self.destination.is_cluster();
        if is_final_answer(error) && self.lost.load(Relaxed) >= live.number {
            // Another caller has found meanwhile that answers are misplaced.
            return CommandError::Misplaced;
        }
        if error.is_timeout() || (is_cluster && is_broken(error)) {
            // A Cluster connection recovers from the loss of a node by itself.
            self.note_timeout();
        } else if is_broken(error) {
            self.lose(live.number);
        } else if !is_cluster
            && let Some(age) = code(error).and_then(elsewhere_after)
            && live.since.elapsed() >= age
        {
            self.refused.fetch_max(live.number, Relaxed);
            self.destination.sentinels.ask();
            self.trouble.notify_one();
        }
        CommandError::from_redis(error)
    }

    /// Takes a connection out of use: nothing more that comes over it can be believed.
    fn misplaced(&self, live: &Arc<Live>) -> CommandError {
        if let Some(session) = &self.session {
            session.ended(live.number);
        }
        let was_in_use = self.current.compare_and_swap(live, None);
        if was_in_use
            .as_ref()
            .is_some_and(|used| Arc::ptr_eq(used, live))
        {
            tracing::warn!(
                target: "resilience",
                name = GUARD,
                redis = ?self.destination.endpoint,
                "an answer from Redis belongs to another command: it is not believed, and the connection is remade"
            );
        }
        self.lose(live.number);
        CommandError::Misplaced
    }

    fn note_answer(&self) {
        if self.timed_out.load(Relaxed) != 0 {
            self.timed_out.store(0, Relaxed);
        }
    }

    fn note_timeout(&self) {
        let timeouts = self.timed_out.fetch_add(1, Relaxed) + 1;
        if timeouts == 1 {
            self.destination.sentinels.ask();
            self.topology.notify_one();
        }
        if timeouts >= SUSPICIOUS {
            self.trouble.notify_one();
        }
    }

    /// Notes that connection `number` is lost.
    pub(super) fn lose(&self, number: u64) {
        if let Some(session) = &self.session {
            session.ended(number);
        }
        self.destination.sentinels.ask();
        self.lost.fetch_max(number, Relaxed);
        self.trouble.notify_one();
    }
}

fn ping(nonce: &Nonce) -> Cmd {
    let mut ping = redis::cmd("PING");
    ping.arg(nonce.as_bytes());
    ping
}

/// What it comes to when the PING behind several commands was not answered: a refusal, if all commands were refused in the same way.
pub(super) fn refused_alike(refusal: Value, answers: Vec<Value>) -> Failure {
    let Err(refusal) = refusal.extract_error() else {
        return Failure::Misplaced;
    };
    let is_same = |answer: Value| {
        let error = answer.extract_error().err();
        error.is_some_and(|error| code(&error) == code(&refusal))
    };
    if answers.into_iter().all(is_same) {
        refusal.into()
    } else {
        Failure::Misplaced
    }
}

/// Whether `error` is an answer of the server that is not followed by further commands, as one is that says that the slot is
/// elsewhere. That the script is missing is such an answer: it may be another command's, and this one may have been executed.
fn is_final_answer(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, CrossSlot, MasterDown, Moved, TryAgain};
    match error.kind() {
        ErrorKind::Server(kind) => !matches!(
            kind,
            Ask | ClusterDown | CrossSlot | MasterDown | Moved | TryAgain
        ),
        ErrorKind::Extension => true,
        _ => false,
    }
}

/// Whether a PING was refused for the reason that the command before it was, or for one that concerns only PINGs: the ACL,
/// or a node of a Cluster that cannot be reached at the moment.
fn is_same_refusal(refusal: &RedisError, error: &RedisError) -> bool {
    let ping_only = match refusal.kind() {
        ErrorKind::Server(kind) => kind == ServerErrorKind::NoPerm,
        ErrorKind::Extension => false,
        _ => true,
    };
    ping_only || code(refusal) == code(error)
}
