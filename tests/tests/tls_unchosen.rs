//! A program with two ways to encrypt that has chosen none, and chooses one later. In a program of its own: the choice is the
//! whole process's.

use std::time::Duration;

use resilience_redis::{Redis, Status};
use resilience_tests::{redis_scene::SOON, until::eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_has_not_chosen_how_to_encrypt_is_told_and_can_still_choose() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("rediss://{}", listener.local_addr().expect("an address"));
    let builder = Redis::builder(&url).budget(Duration::from_millis(200));
    let redis = builder.connect().expect("good settings");
    let says = async |what: &'static str| {
        let is_down = || matches!(redis.status(), Status::Down(why) if why.contains(what));
        eventually(what, SOON, async || is_down()).await;
    };
    says("CryptoProvider").await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    drop(listener);
    says("refused").await;
}
