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
