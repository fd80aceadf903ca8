//! Which requests are the same: keys on several hosts and routes, under prefixes, and of several callers.

use axum::{Router, routing::post};
use http::{Method, StatusCode, header};
use resilience_core::idempotency::Idempotency;
use resilience_http::{
    idempotency::FingerprintRules,
    server::{IdempotentRequests, MissingCredentials},
};

use super::rig::*;

async fn is_another_request(ask: &Ask, app: &Router) {
    let (kind, document) = refused(ask.send(app).await, StatusCode::UNPROCESSABLE_ENTITY).await;
    assert_eq!(kind, "key_reused", "{document}");
}

#[tokio::test]
async fn a_key_of_one_host_finds_nothing_on_another() {
    let (app, effects) = paying(&once());
    let at = |host: &str| pay("k", "{}").with(header::HOST, host);
    assert_eq!(text(at("a.test").send(&app).await).await, "payment 1");
    for other in ["b.test", "a.test.b", "sub.a.test"] {
        is_another_request(&at(other), &app).await;
    }
    let absolute = pay("k", "{}").to(Method::POST, "https://b.test/pay");
    is_another_request(&absolute.with(header::HOST, "a.test"), &app).await;
    is_another_request(&pay("k", "{}"), &app).await;
    // The same host in other words.
    for same in ["A.test", "a.test:8443"] {
        assert!(is_replay(&at(same).send(&app).await), "{same}");
    }
    let absolute = pay("k", "{}").to(Method::POST, "http://a.test/pay");
    assert!(is_replay(&absolute.send(&app).await));
    assert_eq!(effects.count(), 1);
    // A service that one client reaches by several names.
    let compare = FingerprintRules::new().without_host();
    let (app, effects) = paying(&once().compare(compare));
    assert_eq!(at("one.test").status(&app).await, 200);
    assert!(is_replay(&at("two.test").send(&app).await));
    assert_eq!(effects.count(), 1);
}

#[tokio::test]
async fn one_handle_on_two_routes_serves_each_request_once_and_none_for_the_other() {
    let effects = Effects::default();
    let handle = builder().build().unwrap();
    let route = |what: &'static str| {
        let effects = effects.clone();
        let handler = async move || format!("{what} {}", effects.another());
        // A layer for each, over the same records.
        post(handler).layer(IdempotentRequests::new(&handle).layer())
    };
    let app = Router::new().route("/pay", route("payment"));
    let app = app.route("/refund", route("refund"));
    let payment = pay("k", "{}");
    let refund = payment.clone().to(Method::POST, "/refund");
    assert_eq!(text(payment.send(&app).await).await, "payment 1");
    is_another_request(&refund, &app).await;
    let other = pay("other", "{}").to(Method::POST, "/refund");
    assert_eq!(text(other.send(&app).await).await, "refund 2");
    assert!(is_replay(&payment.send(&app).await));
}

/// The worst fault of a store of responses, where a router hides the part of the path that says whose it is.
#[cfg(feature = "axum")]
#[tokio::test]
async fn a_layer_in_a_nested_router_knows_a_request_by_the_path_that_was_sent() {
    let effects = Effects::default();
    let handle = builder().build().unwrap();
    let inner = || {
        let paid = effects.clone();
        let handler = async move || format!("payment {}", paid.another());
        let once = IdempotentRequests::new(&handle);
        // These see `/pay`.
        Router::new()
            .route("/pay", post(handler))
            .layer(once.layer())
    };
    let app = Router::new()
        .nest("/tenants/{t}", inner())
        .nest("/v2", Router::new().nest("/tenants/{t}", inner()))
        .nest_service("/legacy", inner())
        .merge(inner());
    let at = |path| pay("k", "{}").to(Method::POST, path);
    assert_eq!(
        text(at("/tenants/a/pay").send(&app).await).await,
        "payment 1"
    );
    for other in [
        "/tenants/b/pay",
        "/v2/tenants/a/pay",
        "/legacy/pay",
        "/pay",
        "/tenants/a/pay?dry_run=1",
    ] {
        is_another_request(&at(other), &app).await;
    }
    assert!(is_replay(&at("/tenants/a/pay").send(&app).await));
    let other = pay("other", "{}").to(Method::POST, "/v2/tenants/b/pay");
    assert_eq!(text(other.send(&app).await).await, "payment 2");
    assert_eq!(effects.count(), 2);
}

/// Two layers over one handle: one that computes the fingerprints of the version before, and one of this version.
#[tokio::test]
async fn a_record_of_the_version_before_is_found_by_a_retry_after_the_upgrade() {
    let handle = builder().build().unwrap();
    let before = IdempotentRequests::new(&handle);
    let before = before.compare(FingerprintRules::new().without_host());
    let (old, effects) = paying(&before);
    let (new, new_effects) = paying(&IdempotentRequests::new(&handle));
    let ask = pay("k", r#"{"amount":7}"#).with(header::HOST, "a.test");
    assert_eq!(text(ask.send(&old).await).await, "payment 1");
    let again = ask.send(&new).await;
    assert!(is_replay(&again));
    assert_eq!(text(again).await, "payment 1");
    let other = pay("k", r#"{"amount":8}"#).with(header::HOST, "a.test");
    is_another_request(&other, &new).await;
    assert_eq!((effects.count(), new_effects.count()), (1, 0));
}

/// Of which tenant the record of the version before is, nothing tells.
#[cfg(feature = "axum")]
#[tokio::test]
async fn a_record_of_the_version_before_in_a_nested_router_is_told_to_no_caller() {
    let handle = builder().build().unwrap();
    let once = IdempotentRequests::new(&handle);
    let (plain, effects) = paying(&once);
    // What the version before computed for any tenant's `/pay`.
    assert_eq!(pay("k", "{}").status(&plain).await, 200);
    let (inner, inner_effects) = paying(&once);
    let nested = Router::new().nest("/tenants/{t}", inner);
    let ask = pay("k", "{}").to(Method::POST, "/tenants/b/pay");
    is_another_request(&ask, &nested).await;
    assert_eq!((effects.count(), inner_effects.count()), (1, 0));
}

#[tokio::test]
async fn requests_without_credentials_are_refused_where_they_must_have_some() {
    let strict = once().missing_credentials(MissingCredentials::Refuse);
    let (app, effects) = paying(&strict);
    let ask = pay("k", "{}");
    let (kind, _) = refused(ask.send(&app).await, StatusCode::BAD_REQUEST).await;
    assert_eq!((&*kind, effects.count()), ("no_credentials", 0));
    let known = ask.clone().with(header::COOKIE, "session=a");
    assert_eq!(known.status(&app).await, 200);
    assert!(is_replay(&known.send(&app).await));
    // A request without a key takes none.
    let keyless = ask.without(&resilience_http::headers::IDEMPOTENCY_KEY);
    assert_eq!(keyless.status(&app).await, 200);
}

fn by_tenant(handle: &Idempotency) -> IdempotentRequests {
    IdempotentRequests::new(handle).scope(|head| {
        let tenant = head.headers.get("x-tenant");
        let tenant = tenant.and_then(|tenant| tenant.to_str().ok());
        tenant.unwrap_or("anonymous").to_owned()
    })
}

#[tokio::test]
async fn a_request_that_began_under_a_former_scope_is_not_served_again_under_the_new_one() {
    let handle = builder().build().unwrap();
    let former = IdempotentRequests::new(&handle);
    let (old, effects) = paying(&former);
    let (new, new_effects) = paying(&by_tenant(&handle).or_scope(&former));
    let tenant = http::HeaderName::from_static("x-tenant");
    let ask = |key, token| {
        let ask = pay(key, "{}").with(header::AUTHORIZATION, token);
        ask.with(tenant.clone(), "a")
    };
    assert_eq!(ask("k", "Bearer 1").status(&old).await, 200);
    assert!(is_replay(&ask("k", "Bearer 1").send(&new).await));
    // A key that begins after the change has the new scope: a new token finds it.
    assert_eq!(ask("new", "Bearer 1").status(&new).await, 200);
    assert!(is_replay(&ask("new", "Bearer 2").send(&new).await));
    assert_eq!((effects.count(), new_effects.count()), (1, 1));
}

/// As UPGRADING.md has it: instances that use the former scope and find the new one, beside those for which it is the
/// other way round.
#[tokio::test]
async fn while_the_scope_is_changed_step_by_step_no_request_is_served_twice() {
    let handle = builder().build().unwrap();
    let now = || IdempotentRequests::new(&handle);
    let before = || now().credentials([header::AUTHORIZATION]);
    let (first, first_effects) = paying(&before().or_scope(&now()));
    let (second, second_effects) = paying(&now().or_scope(&before()));
    let by = |key| pay(key, "{}").with(http::HeaderName::from_static("x-api-key"), "a");
    for (key, one, other) in [("a", &first, &second), ("b", &second, &first)] {
        assert_eq!(by(key).status(one).await, 200);
        assert!(is_replay(&by(key).send(other).await), "{key}");
        assert!(is_replay(&by(key).send(one).await), "{key}");
    }
    assert_eq!((first_effects.count(), second_effects.count()), (1, 1));
}
