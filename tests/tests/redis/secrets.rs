//! Passwords in URLs are never shown, in whatever form they are written and however wrong that is.

use std::{
    error::Error,
    fmt::{Debug, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::prelude::*;
use resilience_redis::{ConnectError, Credentials, Redis};
use tokio::runtime;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
};

/// URLs with a password in place of `%`; some are good, and some are not.
const FORMS: [&str; 23] = [
    "redis://:%@127.0.0.1:1",
    "redis://user:%@127.0.0.1:1/3",
    "redis://user:%@127.0.0.1:notaport",
    "redis://user:%@127.0.0.1:1/not-a-number",
    "redis://user:%@127.0.0.1:1?protocol=resp3",
    "redis://user:%@127.0.0.1:1/0?x=y@z",
    "redis://user:%@127.0.0.1:1,127.0.0.1:2",
    "redis://user:%@",
    "redis://user:%",
    "redis://:%",
    "redis:/user:%@127.0.0.1:1",
    "rediss://user:%@127.0.0.1:1",
    "valkey://user:%@[::1]:1",
    "redis-sentinel://user:%@127.0.0.1:1,127.0.0.1:2/main/2",
    "redis-sentinel://user:%@127.0.0.1:1",
    "redis-sentinel://127.0.0.1:1/main?sentinel_username=u&sentinel_password=%",
    "redis-sentinel://127.0.0.1:1/main/x?sentinel_password=%",
    "redis-cluster://user:%@127.0.0.1:1,127.0.0.1:2",
    "redis-cluster://user:%@127.0.0.1:1/4",
    "unix:///nowhere.sock?user=u&pass=%",
    "unix:///nowhere.sock?db=x&pass=%",
    "http://user:%@127.0.0.1",
    "user:%@127.0.0.1:1",
];

/// What no secret may leave behind.
const MARKS: [&str; 2] = ["hunter", "dragon"];

fn secret() -> impl Strategy<Value = String> {
    let special = "[/?#@:%&=,;+ \\[\\]!$0-9]{0,3}";
    (special, special, special).prop_map(|(before, between, behind)| {
        format!("{before}{}{between}{}{behind}", MARKS[0], MARKS[1])
    })
}

/// Everything that is shown of a connection by this URL.
async fn shown(url: &str) -> String {
    let builder = Redis::builder(url).connect_timeout(Duration::from_millis(5));
    let builder = builder.sentinel_credentials(Credentials::new(MARKS[0], MARKS[1]));
    let about_builder = format!("{builder:?}");
    match Redis::connect(url) {
        Ok(_) => {
            let redis = builder.connect().expect("the same URL");
            let status = redis.ready(Duration::from_millis(5)).await;
            let store = format!("{:?}{:?}", redis.breakers(), redis.idempotency());
            format!("{about_builder}{redis:?}{status:?}{store}")
        }
        Err(error) => {
            let same = builder.connect().expect_err("the same URL");
            format!("{about_builder}{}{}", everything(error), everything(same))
        }
    }
}

/// What is shown of errors of any kind, at every level.
fn everything(error: ConnectError) -> String {
    let mut shown = format!("{error:?}{error}");
    let error: Box<dyn Error + Send + Sync> = error.into();
    let mut next = Some(&*error as &(dyn Error + 'static));
    while let Some(error) = next {
        write!(shown, "{error:?}{error:#?}{error}").expect("memory");
        next = error.source();
    }
    shown
}

/// What is shown when the URL, a setting or the lack of a runtime stands in the way.
fn shown_without_a_runtime(url: &str) -> String {
    let zero = Redis::builder(url).budget(Duration::ZERO);
    let refused = [Redis::connect(url), zero.connect()];
    let errors = refused.map(|refused| refused.expect_err("there is no runtime"));
    errors.map(everything).concat()
}

/// The fields of all events.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<String>>);

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        event.record(&mut Fields(&mut self.0.lock().unwrap()));
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, "{field}={value:?} ");
    }
}

#[test]
fn no_text_and_no_event_shows_the_password_of_a_url() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // All on this thread, as the recorder is.
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let events = Recorder::default();
    let recording = tracing_subscriber::registry().with(events.clone());
    let _recording = tracing::subscriber::set_default(recording);
    proptest!(ProptestConfig::with_cases(512), |(form in 0..FORMS.len(), secret in secret())| {
        // Where no host follows, what follows an `@` is one.
        let is_host = FORMS[form].ends_with('%') && secret.contains('@');
        prop_assume!(!is_host || FORMS[form].contains('?'));
        let url = FORMS[form].replace('%', &secret);
        let without = shown_without_a_runtime(&url);
        let mut shown = runtime.block_on(shown(&url)) + &without;
        shown.push_str(&std::mem::take(&mut *events.0.lock().unwrap()));
        for mark in MARKS {
            prop_assert!(!shown.contains(mark), "{url}: {shown}");
        }
    });
}
