//! A connection to a Redis that tests write commands to, as they are, and read answers from, as text.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// One connection; its commands run one after the other.
#[derive(Debug)]
pub struct RedisConnection {
    stream: Mutex<BufReader<TcpStream>>,
}

impl RedisConnection {
    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    ///
    /// When nothing listens there.
    pub fn open(addr: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let stream = Mutex::new(BufReader::new(stream));
        Ok(Self { stream })
    }

    /// Sends one command of these words.
    ///
    /// # Errors
    ///
    /// When there is no answer within 5 seconds. An error of the server is an answer that begins with `-`.
    pub fn ask(&self, words: &[&str]) -> std::io::Result<String> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.get_mut().write_all(command.as_bytes())?;
        let mut answer = String::new();
        read_answer(&mut stream, &mut answer)?;
        Ok(answer)
    }
}

/// Reads one RESP2 value as text.
fn read_answer(from: &mut BufReader<TcpStream>, out: &mut String) -> std::io::Result<()> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let line = line.trim_end();
    let Some((kind, rest)) = line.split_at_checked(1) else {
        return Err(std::io::ErrorKind::InvalidData.into());
    };
    let length = || rest.parse::<i64>().map_err(std::io::Error::other);
    match kind {
        "$" => {
            let Ok(length) = usize::try_from(length()?) else {
                return Ok(());
            };
            let mut bytes = vec![0; length + 2];
            from.read_exact(&mut bytes)?;
            out.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
        "*" => {
            for item in 0..length()?.max(0) {
                if item > 0 {
                    out.push('\n');
                }
                read_answer(from, out)?;
            }
        }
        ":" | "+" => out.push_str(rest),
        _ => out.push_str(line),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, test_kill_process};

    fn is_there(process: i32) -> bool {
        Pid::from_raw(process).is_some_and(|pid| test_kill_process(pid).is_ok())
    }

    #[test]
    fn no_process_and_no_file_outlives_the_server_even_if_it_was_paused() {
        let server = RedisServer::start();
        assert_eq!(server.command("PING"), "PONG");
        let (process, dir) = (server.process().expect("it runs"), server.dir().to_owned());
        assert!(is_there(process) && dir.exists());
        server.pause();
        drop(server);
        assert!(!is_there(process) && !dir.exists());
    }

    #[test]
    fn a_killed_server_comes_back_on_its_port_empty() {
        let mut server = RedisServer::start();
        assert_eq!(server.command("SET a b"), "OK");
        let process = server.process();
        server.kill();
        assert!(server.try_command("PING").is_err());
        server.restart();
        assert_eq!(server.command("GET a"), "");
        assert_ne!(server.process(), process);
    }

    #[test]
    fn a_port_that_somebody_else_took_costs_one_try() {
        let first = RedisServer::start();
        let tries = std::cell::Cell::new(0);
        let second = RedisServer::on_some_port(|port, dir| {
            tries.set(tries.get() + 1);
            let port = if tries.get() == 1 { first.port } else { port };
            RedisServer::new(Flavour::Redis, port, dir, plain(port, &[]))
        });
        assert_eq!(tries.get(), 2);
        assert_eq!(second.command("PING"), "PONG");
    }
}
