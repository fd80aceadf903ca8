//! Redis over TLS: certificates are verified, and the store of breakers conforms.

use std::time::Duration;

use resilience_core::conformance;
use resilience_redis::{Redis, RedisBuilder, Status};
use resilience_tests::{authority::Authority, redis::RedisServer, redis_scene::SOON};

fn connect(server: &RedisServer, roots: &str) -> Redis {
    builder(server, roots).connect().expect("good settings")
}

fn builder(server: &RedisServer, roots: &str) -> RedisBuilder {
    // Once per process, as a program does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Redis::builder(&server.tls_url())
        .budget(Duration::from_secs(2))
        .root_certificates(roots)
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_store_conforms() {
    let authority = Authority::new();
    let server = authority.server(&["127.0.0.1"]);
    let redis = connect(&server, &authority.pem());
    redis.ready(SOON).await.expect("connects");
    conformance::breaker::all(&redis.breakers()).await;
}

async fn is_refused(redis: &Redis) {
    match redis.ready(Duration::from_millis(500)).await {
        Err(Status::Down(why)) => assert!(why.contains("certificate"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_authority_is_not_trusted() {
    let server = Authority::new().server(&["127.0.0.1"]);
    is_refused(&connect(&server, &Authority::new().pem())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_is_not_accepted() {
    let authority = Authority::new();
    let server = authority.server(&["redis.example.org"]);
    is_refused(&connect(&server, &authority.pem())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_certificates_of_clients_is_shown_one() {
    let authority = Authority::new();
    let server = authority.mutual_server(&["127.0.0.1"]);
    let (certificate, key) = authority.certificate(&["client"]);
    let known = builder(&server, &authority.pem()).client_certificate(certificate, key);
    let known = known.connect().expect("good settings");
    known.ready(SOON).await.expect("connects");
    assert_eq!(known.ping().await, Ok(()));
    let unknown = connect(&server, &authority.pem());
    assert!(unknown.ready(Duration::from_millis(500)).await.is_err());
}
