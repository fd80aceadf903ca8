//! A Redis server of the harness in a process of its own, to be killed: prints the server's process id and directory,
//! and waits for the end of its input.

use std::io::Read;

use resilience_tests::redis::RedisServer;

fn main() -> std::io::Result<()> {
    let server = RedisServer::start();
    println!(
        "{} {}",
        server.process().unwrap_or_default(),
        server.dir().display()
    );
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
