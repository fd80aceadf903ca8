//! HTTP over TLS: what a failed handshake says about the dependency.

use resilience_core::{Classify, Verdict};
use resilience_http::HttpClassifier;
use tokio::{io::AsyncWriteExt, net::TcpListener};

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_permanent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        stream
    };
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = client.get(format!("https://{address}/")).send();
    let (result, _stream) = tokio::join!(call, server);
    let error = result.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    let verdict = HttpClassifier::new().classify(Err::<&reqwest::Response, _>(&error));
    assert_eq!(verdict, Verdict::Permanent);
}
