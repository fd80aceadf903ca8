//! Lua scripts: sent by digest, and in full once when the server does not know one.
//!
//! # References
//! [Scripting with Lua](https://redis.io/docs/latest/develop/programmability/eval-intro/) in the documentation of Redis: EVAL,
//! EVALSHA, the script cache.

use std::time::Duration;

use redis::{Cmd, Value};

use crate::{
    connection::{Connection, Nonce},
    error::CommandError,
};

/// Wraps every script: the last argument is a nonce, which comes back first in the answer. The script itself sees
/// neither. Costs the server 1 us, of the 4.5 us that the shortest replay takes.
const BEFORE: &str = "local function script(KEYS, ARGV)\n";
const BEHIND: &str = "
end
local argv = ARGV
local last = #argv
local nonce = argv[last]
argv[last] = nil
return { nonce, (script(KEYS, argv)) }
";

/// One script, kept in a `static`, so that its digest is computed once.
pub(crate) struct Script {
    source: String,
    digest: String,
}

impl Script {
    pub(crate) fn new(source: &str) -> Self {
        let source = [BEFORE, source, BEHIND].concat();
        let digest = sha1_smol::Sha1::from(&source).digest().to_string();
        Self { source, digest }
    }

    /// The script with `prelude` in front of it, which may replace `redis` and `ARGV`.
    #[cfg(test)]
    pub(crate) fn behind(&self, prelude: &str) -> Self {
        let source = self.source.strip_prefix(BEFORE);
        let source = source.and_then(|source| source.strip_suffix(BEHIND));
        Self::new(&[prelude, source.expect("it is wrapped")].concat())
    }

    /// Runs the script: one round trip, two when the server's script cache was lost (EVAL refills it). Returns the answer to
    /// this call, never that to another.
    pub(crate) async fn run(
        &self,
        connection: &Connection,
        keys: &[&str],
        args: &[&[u8]],
    ) -> Result<Value, CommandError> {
        let key = keys.first().copied().unwrap_or_default();
        let nonce = connection.nonce();
        let by_digest = command("EVALSHA", &self.digest, keys, args, &nonce);
        match connection.ask(key, &by_digest, &nonce).await {
            Err(error) if is_unknown(&error) => {
                let nonce = connection.nonce();
                let whole = command("EVAL", &self.source, keys, args, &nonce);
                connection.ask(key, &whole, &nonce).await
            }
            answer => answer,
        }
    }

    /// Runs the script, and waits on the same connection until `replicas` have what it wrote, for at most
    /// `within`. Returns the answer, and the number of replicas that have it.
    pub(crate) async fn run_and_wait(
        &self,
        connection: &Connection,
        keys: &[&str],
        args: &[&[u8]],
        replicas: u32,
        within: Duration,
    ) -> Result<(Value, u64), CommandError> {
        let mut wait = redis::cmd("WAIT");
        wait.arg(replicas).arg(within.as_millis() as u64);
        let key = keys.first().copied().unwrap_or_default();
        let nonce = connection.nonce();
        let by_digest = command("EVALSHA", &self.digest, keys, args, &nonce);
        match connection
            .ask_and_wait(key, &by_digest, &nonce, &wait)
            .await
        {
            Err(error) if is_unknown(&error) => {
                let nonce = connection.nonce();
                let whole = command("EVAL", &self.source, keys, args, &nonce);
                connection.ask_and_wait(key, &whole, &nonce, &wait).await
            }
            answer => answer,
        }
    }
}

fn command(name: &str, script: &str, keys: &[&str], args: &[&[u8]], nonce: &Nonce) -> Cmd {
    let words = keys
        .iter()
        .map(|key| key.as_bytes())
        .chain(args.iter().copied());
    let bytes: usize = words.map(<[u8]>::len).sum();
    let mut cmd = Cmd::with_capacity(keys.len() + args.len() + 4, bytes + script.len() + 32);
    cmd.arg(name).arg(script).arg(keys.len());
    for key in keys {
        cmd.arg(*key);
    }
    for arg in args {
        cmd.arg(*arg);
    }
    cmd.arg(nonce.as_bytes());
    cmd
}

/// Whether the server does not know the script.
fn is_unknown(error: &CommandError) -> bool {
    matches!(error, CommandError::Refused(error) if error.contains("NOSCRIPT") || error.contains("NoScript"))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, BufReader},
        net::{TcpListener, TcpStream},
        runtime::Handle,
        task::JoinSet,
    };

    use super::*;
    use crate::{connection::Settings, url::Endpoint};

    /// A server that answers every script with its nonce and its first argument, and can send surplus answers.
    #[derive(Default)]
    struct Echoes {
        /// Number of connections so far.
        connections: AtomicUsize,
        /// Answers that precede the next one, to no command.
        surplus: std::sync::Mutex<Vec<&'static str>>,
        /// Whether scripts are known by digest.
        knows_scripts: std::sync::atomic::AtomicBool,
    }

    const OTHERS: &str = "*2\r\n$1\r\n!\r\n$7\r\nforeign\r\n";
    const SOON: Duration = Duration::from_secs(10);

    impl Echoes {
        async fn start() -> (Arc<Self>, Arc<Connection>) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("redis://{}", listener.local_addr().unwrap());
            let server = Arc::new(Self::default());
            let serving = Arc::clone(&server);
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    serving.connections.fetch_add(1, SeqCst);
                    tokio::spawn(Arc::clone(&serving).serve(socket));
                }
            });
            let endpoint = Endpoint::parse(&url).unwrap();
            let connection =
                Connection::start(endpoint, Settings::all_within(SOON), Handle::current());
            connection.ready(SOON).await.unwrap();
            (server, Arc::new(connection))
        }

        async fn serve(self: Arc<Self>, mut socket: TcpStream) -> std::io::Result<()> {
            let (reader, mut writer) = socket.split();
            let mut reader = BufReader::new(reader);
            loop {
                let words = read(&mut reader).await?;
                let answer = match words[0].as_str() {
                    "EVALSHA" if !self.knows_scripts.load(SeqCst) => {
                        "-NOSCRIPT No matching script.\r\n".to_owned()
                    }
                    "EVAL" | "EVALSHA" => {
                        let answer = bulk(&words[4]);
                        format!("*2\r\n{}{answer}", bulk(&words[words.len() - 1]))
                    }
                    "WAIT" => ":1\r\n".to_owned(),
                    "GET" => bulk(&format!("value of {}", words[1])),
                    "TIME" => format!("*2\r\n{}{}", bulk("1700000000"), bulk("0")),
                    "PING" => bulk(&words[1]),
                    "HELLO" => "%1\r\n$5\r\nproto\r\n:3\r\n".to_owned(),
                    "INFO" => bulk("maxmemory:0"),
                    _ => "+OK\r\n".to_owned(),
                };
                if matches!(words[0].as_str(), "EVAL" | "EVALSHA" | "GET" | "PING") {
                    let surplus = std::mem::take(&mut *self.surplus.lock().unwrap());
                    writer.write_all(surplus.concat().as_bytes()).await?;
                }
                writer.write_all(answer.as_bytes()).await?;
            }
        }

        fn lose_count(&self, surplus: &'static str) {
            self.surplus.lock().unwrap().push(surplus);
        }
    }

    fn bulk(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    async fn read(reader: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Vec<String>> {
        let mut words = Vec::new();
        for _ in 0..number(reader).await? {
            let mut word = vec![0; number(reader).await? + 2];
            reader.read_exact(&mut word).await?;
            word.truncate(word.len() - 2);
            words.push(String::from_utf8_lossy(&word).into_owned());
        }
        Ok(words)
    }

    /// Of `*number` or `$number`.
    async fn number(reader: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<usize> {
        let mut line = String::new();
        while !line.ends_with("\r\n") {
            line.push(reader.read_u8().await?.into());
        }
        Ok(line[1..].trim().parse().unwrap())
    }

    async fn ask(connection: &Connection, waits: bool, own: &str) -> Result<String, CommandError> {
        let script = Script::new("return ARGV[1]");
        let args = [own.as_bytes()];
        let answer = if waits {
            let waited = script.run_and_wait(connection, &["key"], &args, 1, SOON);
            waited.await.map(|(answer, _)| answer)
        } else {
            script.run(connection, &["key"], &args).await
        };
        answer.map(|answer| redis::from_redis_value(answer).expect("text"))
    }

    /// Waits until there is another connection than the first `before`, and it is used.
    async fn is_remade(server: &Echoes, connection: &Connection, before: usize) {
        let remade = async {
            while server.connections.load(SeqCst) == before || connection.ping().await.is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let remade = tokio::time::timeout(SOON, remade).await;
        remade.expect("it is remade");
    }

    #[tokio::test]
    async fn answers_that_slide_are_never_taken_for_another_callers_and_the_connection_is_remade() {
        let (server, connection) = Echoes::start().await;
        for (round, surplus) in [OTHERS, "+OK\r\n", ":1\r\n", "_\r\n", "-ERR foreign\r\n"]
            .into_iter()
            .cycle()
            .take(10)
            .enumerate()
        {
            server.knows_scripts.store(round % 2 == 0, SeqCst);
            let before = server.connections.load(SeqCst);
            server.lose_count(surplus);
            let mut callers = JoinSet::new();
            for caller in 0..64 {
                let connection = Arc::clone(&connection);
                callers.spawn(async move {
                    let own = format!("{round}-{caller}");
                    let answer = ask(&connection, caller % 2 == 0, &own).await;
                    match &answer {
                        Ok(answer) => assert_eq!(*answer, own),
                        Err(error) => assert!(
                            error.is_ambiguous() || *error == CommandError::Down,
                            "{error}"
                        ),
                    }
                    answer.is_err_and(|error| error.is_ambiguous())
                });
            }
            let in_doubt = callers.join_all().await;
            assert!(in_doubt.contains(&true), "{surplus:?} is noticed");
            is_remade(&server, &connection, before).await;
            assert_eq!(
                ask(&connection, false, "after").await.as_deref(),
                Ok("after")
            );
        }
    }

    /// Reads `key`, whose value proves itself.
    async fn read_value(connection: &Connection, key: &str) -> Result<String, CommandError> {
        let mut get = redis::cmd("GET");
        get.arg(key);
        let own = format!("value of {key}");
        let is_its = |it: &Value| matches!(it, Value::BulkString(it) if *it == own.as_bytes());
        let answer = connection.read(key, &get, is_its).await;
        answer.map(|answer| redis::from_redis_value(answer).expect("text"))
    }

    #[tokio::test]
    async fn reads_that_slide_are_never_taken_for_those_of_another_key() {
        let (server, connection) = Echoes::start().await;
        for surplus in [
            OTHERS,
            "+OK\r\n",
            "$7\r\nforeign\r\n",
            "$14\r\nvalue of key 0\r\n",
        ] {
            let before = server.connections.load(SeqCst);
            server.lose_count(surplus);
            let mut callers = JoinSet::new();
            for caller in 1..64 {
                let connection = Arc::clone(&connection);
                callers.spawn(async move {
                    let key = format!("key {caller}");
                    let answer = read_value(&connection, &key).await;
                    match &answer {
                        Ok(answer) => assert_eq!(*answer, format!("value of {key}")),
                        Err(error) => assert!(
                            error.is_ambiguous() || *error == CommandError::Down,
                            "{error}"
                        ),
                    }
                    answer.is_err_and(|error| error.is_ambiguous())
                });
            }
            // None is, if the client had all answers before it was asked for more, and dropped the last.
            if callers.join_all().await.contains(&true) {
                is_remade(&server, &connection, before).await;
            }
        }
    }

    #[tokio::test]
    async fn an_answer_of_another_key_is_asked_for_again_in_its_place() {
        let (server, connection) = Echoes::start().await;
        for surplus in [OTHERS, "$14\r\nvalue of key 0\r\n"] {
            // The surplus answer and the own one come together: the client may drop the latter, and be in step again.
            let before = server.connections.load(SeqCst);
            server.lose_count(surplus);
            match read_value(&connection, "key 1").await {
                Ok(answer) => assert_eq!(answer, "value of key 1", "{surplus:?}"),
                Err(error) => {
                    assert_eq!(error, CommandError::Misplaced, "{surplus:?}");
                    is_remade(&server, &connection, before).await;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_repeated_read_is_believed_between_the_right_answers_to_two_pings_only() {
        let (server, connection) = Echoes::start().await;
        let mut get = redis::cmd("GET");
        get.arg("key");
        let before = server.connections.load(SeqCst);
        let slide = |_: &Value| {
            server.lose_count(OTHERS);
            false
        };
        let answer = connection.read("key", &get, slide).await;
        assert_eq!(answer, Err(CommandError::Misplaced));
        is_remade(&server, &connection, before).await;
        let before = server.connections.load(SeqCst);
        let answer = connection.read_once("key", &get, |_| false).await;
        assert_eq!(answer, Err(CommandError::Misplaced));
        is_remade(&server, &connection, before).await;
    }

    #[tokio::test]
    async fn a_value_that_does_not_prove_itself_is_returned_in_its_place() {
        let (server, connection) = Echoes::start().await;
        let mut get = redis::cmd("GET");
        get.arg("key");
        let before = server.connections.load(SeqCst);
        for _ in 0..3 {
            let answer = connection.read("key", &get, |_| false).await;
            let own = Value::BulkString(b"value of key".to_vec());
            assert_eq!(answer, Ok(own));
        }
        assert_eq!(server.connections.load(SeqCst), before, "not remade");
    }

    #[tokio::test]
    async fn answers_to_commands_in_one_piece_are_all_theirs_or_not_believed() {
        let (server, connection) = Echoes::start().await;
        let ask = async || {
            let mut cmds = redis::pipe();
            cmds.cmd("GET").arg("key 1").cmd("GET").arg("key 2");
            connection.ask_each("key 1", cmds).await
        };
        for surplus in [
            OTHERS,
            "+OK\r\n",
            "$14\r\nvalue of key 0\r\n",
            "-ERR foreign\r\n",
        ] {
            let before = server.connections.load(SeqCst);
            server.lose_count(surplus);
            assert_eq!(ask().await, Err(CommandError::Misplaced), "{surplus:?}");
            is_remade(&server, &connection, before).await;
            let own = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            let all = vec![own("value of key 1"), own("value of key 2")];
            assert_eq!(ask().await, Ok(all));
        }
    }

    #[tokio::test]
    async fn a_ping_that_is_answered_with_something_else_is_not_answered() {
        let (server, connection) = Echoes::start().await;
        assert_eq!(connection.ping().await, Ok(()));
        server.lose_count(OTHERS);
        assert_eq!(connection.ping().await, Err(CommandError::Misplaced));
    }
}
