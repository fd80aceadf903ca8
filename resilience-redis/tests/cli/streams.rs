//! Streams: what they hold, and the repairs.

use resilience_core::{
    fleet::FleetOptions,
    stream::{Consumer, Event, Message, Producer},
};
use resilience_redis::Redis;
use resilience_tests::{redis::RedisServer, until::eventually};
use serde_json::Value;

use super::{Operator, SOON};

/// A stream with three orders, the first of which is a dead letter of a group that is served by nothing any more.
async fn a_dead_letter() -> (RedisServer, Operator) {
    let server = RedisServer::start();
    let redis = Redis::connect(&server.url()).expect("a good URL");
    redis.ready(SOON).await.expect("connects");
    let orders = Producer::<u64>::builder("orders", redis.streams())
        .event_type("order.placed")
        .build()
        .expect("good settings");
    let events = [7, 8, 9].map(|order| (order, format!("order-{order}")));
    let events = events
        .iter()
        .map(|(order, id)| Event::new(order).key("ann").id(id.as_str()));
    orders.publish_all(events).await.expect("published");
    let billing = Consumer::<u64>::builder("orders", redis.streams())
        .group("billing")
        .fleet(FleetOptions::new().instance("pod-7"))
        .max_deliveries(1)
        .build()
        .expect("good settings");
    let bill = |order: Message<u64>| async move {
        let is_good = *order.event() != 7;
        is_good.then_some(()).ok_or("the card\u{1b}[2J was refused")
    };
    let done = eventually("all are settled", SOON, || async {
        let totals = billing.snapshot().totals;
        totals.acknowledged == 2 && totals.dead == 1
    });
    tokio::select! {
        ended = billing.run(bill) => ended.expect("serves"),
        () = done => {}
    }
    billing.shutdown(SOON).await.expect("ended");
    let operator = Operator {
        noun: &["stream"],
        ..Operator::of(server.url())
    };
    (server, operator)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_streams_hold_and_repairs_it() {
    let (_server, operator) = a_dead_letter().await;

    eventually("it is listed", SOON, || async {
        operator.json(&["list"])[0]["name"] == "orders"
    })
    .await;
    let list = operator.json(&["list"]);
    let numbers = ["/length", "/groups/0/lag", "/groups/0/dead"];
    let numbers = numbers.map(|at| list[0].pointer(at).and_then(Value::as_u64));
    assert_eq!(numbers, [Some(3), Some(0), Some(1)], "{list:#}");
    for verb in [&["list"][..], &["groups", "orders"]] {
        let table = operator.text(verb);
        let word = if verb.len() == 1 { "orders" } else { "billing" };
        assert!(table.contains(word), "{table}");
    }

    let messages = operator.json(&["peek", "orders", "--body"]);
    let first = &messages[0];
    let shown = ["id", "type", "key", "body"].map(|field| first[field].as_str());
    let expected = ["order-7", "order.placed", "ann", "7"].map(Some);
    assert_eq!(shown, expected, "{messages:#}");
    assert!(operator.text(&["peek", "orders"]).contains("order-9"));
    let second = messages[1]["position"].as_str().expect("a position");
    let rest = operator.json(&["peek", "orders", "--from", second, "--count", "1"]);
    assert_eq!(rest.as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&rest[0]["id"], rest[0].get("body")),
        (&"order-8".into(), None)
    );

    let dead = ["peek", "orders", "--dead", "billing"];
    let letters = operator.json(&dead);
    let letter = &letters[0];
    assert_eq!(letter["message"]["id"], "order-7", "{letters:#}");
    assert_eq!(letter["deliveries"], 1, "{letters:#}");
    assert_eq!(letter["failures"][0]["delivery"], 1, "{letters:#}");
    let table = operator.text(&dead);
    assert!(
        table.contains("was refused") && !table.contains('\u{1b}'),
        "{table}"
    );

    // It waits for a consumer then, and there is none.
    let position = letter["position"].as_str().expect("a position");
    let redriven = operator.json(&["redrive", "orders", "billing", position]);
    assert_eq!(redriven["redriven"][0], position);
    assert_eq!(operator.json(&dead), serde_json::json!([]));
    let pending = operator.json(&["pending", "orders", "billing"]);
    assert_eq!(pending[0]["position"], position, "{pending:#}");
    assert_eq!(pending[0]["consumer"], Value::Null, "{pending:#}");
    let waits = operator.text(&["pending", "orders", "billing"]);
    assert!(waits.contains("due"), "{waits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_pauses_a_group_and_drops_its_dead_letters() {
    let (_server, operator) = a_dead_letter().await;

    let pause = [
        "pause",
        "orders",
        "billing",
        "--reason",
        "a drill",
        "--expires",
        "10m",
    ];
    let paused = operator.json(&pause);
    let pause = &paused["paused"];
    assert_eq!(
        (&pause["by"], &pause["reason"]),
        (&"ann".into(), &"a drill".into())
    );
    assert!((590_000..=600_000).contains(&pause["left_ms"].as_u64().expect("a time")));
    let table = operator.text(&["groups", "orders"]);
    assert!(table.contains("by ann: a drill"), "{table}");
    assert_eq!(
        operator.json(&["resume", "orders", "billing"])["paused"],
        Value::Null
    );
    assert!(
        operator
            .text(&["pause", "orders", "billing", "--reason", "a drill"])
            .contains("a drill")
    );
    operator.json(&["resume", "orders", "billing"]);

    let dropped = operator.text(&["drop", "orders", "billing", "--all"]);
    assert_eq!(dropped, "dropped: 1\n");
    assert_eq!(operator.json(&["groups", "orders"])["groups"][0]["dead"], 0);
    assert_eq!(
        operator.json(&["pending", "orders", "billing"]),
        serde_json::json!([])
    );
    assert_eq!(
        operator.json(&["drop", "orders", "billing", "--all"])["dropped"],
        serde_json::json!([])
    );

    for (args, code, says) in [
        (
            &["groups", "odrers"][..],
            3,
            "no stream `odrers`; there are: orders",
        ),
        (
            &["pending", "orders", "bilking"],
            3,
            "no group `bilking`; there are: billing",
        ),
        (
            &["redrive", "orders", "billing", "1-1"],
            3,
            "no dead letter `1-1`",
        ),
        (&["redrive", "orders", "billing"], 2, "POSITION"),
        (&["redrive", "orders", "billing", "first"], 2, "first"),
        (&["drop", "orders", "billing", "1-1", "--all"], 2, "--all"),
        (&["pause", "orders", "billing"], 2, "--reason"),
        (
            &[
                "pause",
                "orders",
                "billing",
                "--reason",
                "r",
                "--expires",
                "0s",
            ],
            2,
            "--expires",
        ),
        (&["peek", "orders", "--count", "0"], 2, "--count"),
    ] {
        let output = operator.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
}
