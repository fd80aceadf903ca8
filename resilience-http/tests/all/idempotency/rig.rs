//! A payment service that counts its effects.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use axum::{Router, body::Body, handler::Handler, routing::post};
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use resilience_core::idempotency::{Idempotency, IdempotencyBuilder};
use resilience_http::{headers::IDEMPOTENCY_KEY, server::IdempotentRequests};
use serde_json::Value;
use tower::ServiceExt;

pub(crate) fn builder() -> IdempotencyBuilder {
    Idempotency::builder("payments")
}

pub(crate) fn once() -> IdempotentRequests {
    IdempotentRequests::new(&builder().build().unwrap())
}

/// The number of effects.
#[derive(Clone, Default)]
pub(crate) struct Effects(Arc<AtomicUsize>);

impl Effects {
    /// Counts one more, and returns its number.
    pub(crate) fn another(&self) -> usize {
        self.0.fetch_add(1, SeqCst) + 1
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(SeqCst)
    }
}

/// `/pay` and `/refund` with this handler behind the layer.
#[expect(clippy::needless_pass_by_value, reason = "as axum takes its handlers")]
pub(crate) fn app<H, T>(once: &IdempotentRequests, handler: H) -> Router
where
    H: Handler<T, ()>,
    T: 'static,
{
    let any = || axum::routing::any(handler.clone());
    let routes = Router::new().route("/pay", any()).route("/refund", any());
    routes.layer(once.layer())
}

/// Pays, and returns the number of the payment.
pub(crate) fn paying(once: &IdempotentRequests) -> (Router, Effects) {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || format!("payment {}", paid.another());
    (app(once, handler), effects)
}

/// A request to be sent.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) headers: Vec<(HeaderName, String)>,
    pub(crate) body: String,
}

pub(crate) fn pay(key: &str, body: &str) -> Ask {
    let json = (header::CONTENT_TYPE, "application/json".into());
    Ask {
        method: Method::POST,
        path: "/pay",
        headers: vec![(IDEMPOTENCY_KEY, key.into()), json],
        body: body.into(),
    }
}

impl Ask {
    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn without(mut self, name: &HeaderName) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self
    }

    pub(crate) fn to(mut self, method: Method, path: &'static str) -> Self {
        (self.method, self.path) = (method, path);
        self
    }

    pub(crate) fn request(&self) -> Request<Body> {
        let mut request = Request::builder().method(&self.method).uri(self.path);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Body::from(self.body.clone())).unwrap()
    }

    pub(crate) async fn send(&self, app: &Router) -> Response<Body> {
        app.clone().oneshot(self.request()).await.unwrap()
    }

    pub(crate) async fn status(&self, app: &Router) -> u16 {
        self.send(app).await.status().as_u16()
    }
}

pub(crate) async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn is_replay(response: &Response<Body>) -> bool {
    response.headers().contains_key("idempotent-replayed")
}

/// The type and the document of a refused request.
pub(crate) async fn refused(response: Response<Body>, status: StatusCode) -> (String, Value) {
    assert_eq!(response.status(), status);
    let kind = &response.headers()[header::CONTENT_TYPE];
    assert_eq!(kind, "application/problem+json");
    let document: Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(document["status"], status.as_u16());
    let kind = document["type"].as_str().unwrap();
    let kind = kind.strip_prefix("urn:problem-type:resilience:idempotency:");
    (kind.unwrap().to_owned(), document)
}

pub(crate) fn post_only<H, T>(handler: H) -> Router
where
    H: Handler<T, ()>,
    T: 'static,
{
    Router::new().route("/pay", post(handler))
}
