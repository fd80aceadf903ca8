//! The result: one table for people, the same as JSON for machines.

mod document;

use std::{collections::BTreeMap, time::Duration};

use comfy_table::{Cell, CellAlignment, Table, presets};

use self::document::Document;
use crate::{
    clients::StoreHealth,
    events::{self, Handled},
    payments::Paid,
    readers::{self, Served},
    script::{Phase, Script},
    stats::{Counts, Latency, Summary},
    tenants::{self, Held},
};

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) run: Run,
    /// Whether the run was cut short by ctrl-c.
    pub(crate) interrupted: bool,
    /// None with the user's own upstream.
    pub(crate) plain: Option<Side>,
    pub(crate) guarded: Side,
    /// None with the user's own upstream.
    pub(crate) shared: Option<Side>,
}

/// What was run.
#[derive(Debug)]
pub(crate) enum Run {
    Storm {
        script: Script,
        rate: u32,
        seed: u64,
        workers: usize,
        instances: usize,
        /// See [`Recorder::lateness`](crate::stats::Recorder::lateness): that of the client that suffered most.
        lateness: Duration,
    },
    Url {
        url: String,
        rate: u32,
    },
}

/// One client's result.
#[derive(Debug)]
pub(crate) struct Side {
    /// How it was set up, in words.
    pub(crate) settings: String,
    pub(crate) summary: Summary,
    pub(crate) retries: u64,
    /// Requests that its upstream had to serve or refuse, by phase. None where we cannot see that.
    pub(crate) upstream: Option<[u64; Phase::ALL.len()]>,
    /// How its breakers went through the outage, if it has some, in the storm.
    pub(crate) fleet: Option<Fleet>,
    /// What became of its payments, in the storm.
    pub(crate) paid: Option<Paid>,
    /// How tenants fared at a service with limits like its breakers: each instance's own, or shared.
    pub(crate) tenants: Option<Held>,
    /// How readers of rows fared that are kept in maps, in caches of its instances, or in one that they share.
    pub(crate) readers: Option<Served>,
    /// What became of orders that were published as events, for each way to acknowledge them.
    pub(crate) events: Vec<Handled>,
    /// How it fared with its store, if its breakers are shared.
    pub(crate) store: Option<StoreHealth>,
}

/// How the breakers of all instances of a client went through the outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fleet {
    /// From the start of the outage (`hanging`) until every instance was open. None if that did not come to pass.
    pub(crate) all_open: Option<Duration>,
    /// From the start of `back` until every instance was closed.
    pub(crate) all_closed: Option<Duration>,
    /// Requests sent meanwhile by instances that were not closed.
    pub(crate) probes: usize,
}

impl Report {
    /// The document that `--json` prints.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Document::of(self))
    }

    /// The table, with what is needed to read it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if self.interrupted {
            text += "\nInterrupted: the figures cover what was run.\n";
        }
        match &self.run {
            Run::Storm {
                script,
                rate,
                seed,
                workers,
                instances,
                lateness,
            } => {
                text += &format!(
                    "\nThe storm: {:.0} s, {rate} calls a second from each client to an upstream of its own with \
                     {workers} workers, seed {seed}.\nThe calls of `guarded` and `shared` are made by {instances} \
                     {} each.\n",
                    script.total().as_secs_f64(),
                    if *instances == 1 {
                        "instance"
                    } else {
                        "instances"
                    },
                );
                if *lateness >= DISTORTED {
                    text += &format!(
                        "THIS MACHINE WAS BUSY: one call in a hundred was started {} ms late or later. Latencies, and \
                         what depends on them, are too high by that much.\n",
                        ms(*lateness)
                    );
                }
                for phase in Phase::ALL {
                    let (name, lasts) = (phase.name(), script.length(phase).as_secs_f64());
                    text += &format!("  {name:<8} {lasts:.1} s  the upstream {}\n", phase.story());
                }
            }
            Run::Url { url, rate } => text += &format!("\nGET {url}, {rate} calls a second.\n"),
        }
        text += &format!("\n{}\n\n", self.table());
        if let Some(plain) = &self.plain {
            text += &wrapped(&format!("plain: {}", plain.settings));
        }
        text += &wrapped(&format!("guarded: {}", self.guarded.settings));
        if let Some(shared) = &self.shared {
            text += &wrapped(&format!("shared: {}", shared.settings));
            text += &shared.store.as_ref().map_or_else(String::new, degraded);
        }
        if self.plain.is_some() {
            text += NOTES;
            text += &tenants();
        }
        if let Run::Storm { instances, .. } = self.run {
            text += &wrapped(&readers::settings(instances));
            text += &wrapped(&events::settings());
        }
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        let named = [
            ("plain", self.plain.as_ref()),
            ("guarded", Some(&self.guarded)),
            ("shared", self.shared.as_ref()),
        ];
        let (names, sides): (Vec<_>, Vec<_>) = named
            .into_iter()
            .filter_map(|(name, side)| Some((name, side?)))
            .unzip();
        table.set_header([""].into_iter().chain(names));
        let mut row = |name: &str, value: &dyn Fn(&Side) -> String| {
            let mut cells = vec![Cell::new(name)];
            cells.extend(
                sides
                    .iter()
                    .map(|side| Cell::new(value(side)).set_alignment(CellAlignment::Right)),
            );
            table.add_row(cells);
        };
        totals(&mut row);
        if self.plain.is_some() {
            by_phase(&mut row);
            row("time to notice the outage", &|side| {
                moment(side.summary.notice)
            });
            row("time to recover", &|side| moment(side.summary.recovery));
            through_the_outage(&mut row);
            at_the_till(&mut row);
            at_the_door(&mut row);
            of_cached_rows(&mut row);
            of_events(&mut row);
        }
        table
    }
}

/// Calls that are started later than this make figures that are not worth much.
const DISTORTED: Duration = Duration::from_millis(50);

type Row<'a> = dyn FnMut(&str, &dyn Fn(&Side) -> String) + 'a;

fn totals(row: &mut Row<'_>) {
    row("calls", &|side| side.summary.calls.total().to_string());
    row("success rate", &|side| {
        percent(side.summary.calls.success_rate())
    });
    row("failed", &|side| {
        listed(side.summary.calls.failed, &side.summary.failures)
    });
    row("rejected", &|side| {
        listed(side.summary.calls.rejected, &side.summary.rejections)
    });
    row("retries", &|side| side.retries.to_string());
    row("latency p50 / p99 / max: all calls", &|side| {
        latency(side.summary.all)
    });
    row("  of the successes", &|side| latency(side.summary.ok));
    row("  of the others, until they knew", &|side| {
        latency(side.summary.not_ok)
    });
    row("waited in vain, all callers together", &|side| {
        format!("{:.0} s", side.summary.in_vain.as_secs_f64())
    });
}

fn by_phase(row: &mut Row<'_>) {
    row("success rate by phase", &|_| String::new());
    for (index, phase) in Phase::ALL.into_iter().enumerate() {
        row(&format!("  {}", phase.name()), &|side| {
            side.summary
                .phases
                .get(index)
                .map_or_else(String::new, |phase| shares(phase.calls))
        });
    }
    row("requests that the upstream got, by phase", &|_| {
        String::new()
    });
    for (index, phase) in Phase::ALL.into_iter().enumerate() {
        let refused = if phase == Phase::Down {
            " (refused connections)"
        } else {
            ""
        };
        row(&format!("  {}{refused}", phase.name()), &|side| {
            side.upstream
                .map_or_else(String::new, |served| served[index].to_string())
        });
    }
    row("  in all", &|side| {
        side.upstream
            .map_or_else(String::new, |served| served.iter().sum::<u64>().to_string())
    });
}

fn through_the_outage(row: &mut Row<'_>) {
    row("requests in the outage (hanging and down)", &|side| {
        let in_outage = |served: [u64; Phase::ALL.len()]| {
            let of = |phase: Phase| served[phase as usize];
            (of(Phase::Hanging) + of(Phase::Down)).to_string()
        };
        side.upstream.map_or_else(String::new, in_outage)
    });
    let mut fleet_row = |name: &str, value: &dyn Fn(&Fleet) -> String| {
        row(name, &|side| {
            side.fleet.as_ref().map_or_else(String::new, value)
        });
    };
    fleet_row("  until every instance was open", &|fleet| {
        moment(fleet.all_open)
    });
    fleet_row("back: until every instance was closed", &|fleet| {
        moment(fleet.all_closed)
    });
    fleet_row("  probes sent meanwhile", &|fleet| fleet.probes.to_string());
}

fn at_the_till(row: &mut Row<'_>) {
    let mut paid_row = |name: &str, value: &dyn Fn(&Paid) -> String| {
        row(name, &|side| {
            side.paid.as_ref().map_or_else(String::new, value)
        });
    };
    paid_row("payments asked for", &|paid| paid.asked.to_string());
    paid_row("  told that they are made", &|paid| paid.told.to_string());
    paid_row("  took effect once", &|paid| paid.once.to_string());
    paid_row("  took effect more than once", &|paid| match paid.most {
        0 | 1 => paid.repeatedly.to_string(),
        most => format!("{} (up to {most} times)", paid.repeatedly),
    });
    paid_row("  told to be made, but are not", &|paid| {
        paid.lost.to_string()
    });
}

fn at_the_door(row: &mut Row<'_>) {
    let mut held_row = |name: &str, value: &dyn Fn(&Held) -> String| {
        row(name, &|side| {
            side.tenants.as_ref().map_or_else(String::new, value)
        });
    };
    held_row("a greedy tenant: calls sent", &|held| held.sent.to_string());
    held_row("  admitted, of those its quota allows", &|held| {
        format!("{} of {}", held.admitted, held.allowed)
    });
    held_row("  refused of a modest one beside it", &|held| {
        held.modest_refused.to_string()
    });
}

fn of_cached_rows(row: &mut Row<'_>) {
    let mut served_row = |name: &str, value: &dyn Fn(&Served) -> String| {
        row(name, &|side| {
            side.readers.as_ref().map_or_else(String::new, value)
        });
    };
    served_row("readers of cached rows", &|served| served.reads.to_string());
    served_row("  loads that the database was asked for", &|served| {
        served.loads.to_string()
    });
    served_row("  p99 of a read", &|served| {
        served
            .p99
            .map_or_else(|| "-".to_owned(), |p99| format!("{} ms", ms(p99)))
    });
    served_row("  answers out of date after an invalidation", &|served| {
        served.outdated.to_string()
    });
    served_row(
        "  answered while the database hung or was down",
        &|served| format!("{} of {}", served.answered_in_outage, served.in_outage),
    );
}

fn of_events(row: &mut Row<'_>) {
    let mut event_row = |name: &str, value: fn(&Handled) -> u64| {
        row(name, &|side| {
            let values = side.events.iter().map(|it| value(it).to_string());
            values.collect::<Vec<_>>().join("; ")
        });
    };
    event_row(
        "orders published (plain: acknowledged after; before)",
        |it| it.published,
    );
    event_row("  took effect once", |it| it.once);
    event_row("  took effect more than once", |it| it.repeatedly);
    event_row("  lost", |it| it.lost);
    event_row("  processes killed meanwhile", |it| it.killed);
}

/// What is to be said of a store that was away; nothing, if it was not.
fn degraded(store: &StoreHealth) -> String {
    if store.away.is_zero() {
        return String::new();
    }
    let reason = store
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(" ({reason})"));
    wrapped(&format!(
        "DEGRADED: for {:.1} s at least one instance was without {}{reason} and went by its own window, as `guarded` \
         does",
        store.away.as_secs_f64(),
        store.name,
    ))
}

const NOTES: &str = "
All clients send the same calls at the same moments, and call 17 meets the same fate at all upstreams.
Latency counts from the moment a call was due, so a stalled client cannot hide what it did not send.
Noticed: from the start of `hanging` to the first call that the breaker turned away; a client without one never does.
Recovered: from the start of `back` to the first success after which at most 1 call in 20 came to nothing. A client
that never stopped asking is back at once; a breaker waits for its next probe. That is what sparing the upstream costs.
What sharing gains depends on how much one instance sees by itself. With few calls each (the default), an instance
takes long to be sure of what the fleet has seen together; with many (try --rate 150), each is sure as soon as the
fleet. The probes are saved in any case: every instance of `guarded` sends its own, `shared` one set for all. With
--instances 1 there is no instance to share with.
Payments: an upstream books one when it begins with it, so an answer that is late or lost is about something that has
happened. `plain` tries again; `guarded` and `shared` send a key with each, and their upstreams keep a record per key.
What a client was not told of may have been made all the same: that is what asking again with the same key is for.
";

/// What the tenants do.
fn tenants() -> String {
    wrapped(&format!(
        "Tenants: a service of as many instances, each with a rate limit per tenant, its own (`guarded`) or one for all \
         (`shared`): {}.",
        tenants::quota()
    ))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn shares(calls: Counts) -> String {
    match calls.rejected {
        0 => percent(calls.success_rate()),
        many => format!("{} ({many} rejected)", percent(calls.success_rate())),
    }
}

fn listed(total: u64, kinds: &BTreeMap<String, u64>) -> String {
    let mut text = total.to_string();
    for (kind, count) in kinds {
        // The pattern goes without saying: only breakers are open, only bulkheads are full.
        let kind = kind.rsplit('.').next().unwrap_or(kind);
        text += &format!("\n{kind} {count}");
    }
    text
}

fn latency(latency: Option<Latency>) -> String {
    latency.map_or_else(
        || "-".to_owned(),
        |Latency { p50, p99, max }| format!("{} / {} / {} ms", ms(p50), ms(p99), ms(max)),
    )
}

/// Breaks a paragraph into lines.
fn wrapped(paragraph: &str) -> String {
    const WIDTH: usize = 100;
    let (mut text, mut length) = (String::new(), 0);
    for word in paragraph.split_whitespace() {
        if length + word.len() >= WIDTH {
            text += "\n   ";
            length = 3;
        }
        if length > 0 {
            text.push(' ');
        }
        text += word;
        length += word.len() + 1;
    }
    text + "\n"
}

/// Two figures below ten milliseconds, none behind the point above a hundred.
fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    match ms {
        ms if ms < 10.0 => format!("{ms:.2}"),
        ms if ms < 100.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

fn moment(after: Option<Duration>) -> String {
    after.map_or_else(|| "never".to_owned(), |after| format!("{} ms", ms(after)))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::stats::{Outcome, Recorder};

    fn side(upstream: Option<[u64; 6]>, script: Option<Script>) -> Side {
        let recorder = Recorder::start(Instant::now(), script);
        recorder.end(Duration::ZERO, Duration::from_millis(12), Outcome::Ok);
        Side {
            settings: "as it comes".to_owned(),
            summary: recorder.summary(),
            retries: 3,
            upstream,
            fleet: None,
            tenants: None,
            readers: None,
            events: Vec::new(),
            paid: None,
            store: None,
        }
    }

    fn storm() -> Report {
        let script = Script::lasting(Duration::from_secs(19));
        let side = || side(Some([1, 2, 3, 4, 5, 6]), Some(script));
        let fleet = |probes| Fleet {
            all_open: Some(Duration::from_millis(700)),
            all_closed: None,
            probes,
        };
        Report {
            run: Run::Storm {
                script,
                rate: 150,
                seed: 7,
                workers: 16,
                instances: 3,
                lateness: Duration::from_millis(2),
            },
            interrupted: false,
            plain: Some(side()),
            guarded: Side {
                fleet: Some(fleet(9)),
                ..side()
            },
            shared: Some(Side {
                fleet: Some(fleet(3)),
                store: Some(StoreHealth {
                    name: "Redis at redis://host".to_owned(),
                    away: Duration::from_millis(1500),
                    reason: Some("it is gone".to_owned()),
                }),
                ..side()
            }),
        }
    }

    #[tokio::test]
    async fn the_json_has_the_promised_keys_for_all_clients() {
        let json: serde_json::Value = serde_json::from_str(&storm().json().unwrap()).unwrap();
        for side in ["plain", "guarded", "shared"] {
            assert_eq!(json[side]["success_rate"], 1.0);
            assert_eq!(json[side]["upstream_requests"]["hanging"], 4);
            assert_eq!(json[side]["phases"]["healthy"]["requests"], 1);
            for key in ["p50_ms", "p99_ms", "max_ms"] {
                let value = json[side][key].as_f64().unwrap();
                assert!((11.9..=12.1).contains(&value), "{key}: {value}");
            }
            assert!(
                json[side]
                    .get("recovery_ms")
                    .is_some_and(serde_json::Value::is_null)
            );
        }
    }

    #[tokio::test]
    async fn only_clients_with_breakers_have_their_figures_and_only_shared_ones_a_store() {
        let json: serde_json::Value = serde_json::from_str(&storm().json().unwrap()).unwrap();
        assert_eq!(json["instances"], 3);
        for (side, probes) in [("guarded", 9), ("shared", 3)] {
            assert_eq!(json[side]["all_open_ms"], 700.0);
            assert_eq!(json[side]["recovery_probes"], probes);
            assert!(
                json[side]
                    .get("all_closed_ms")
                    .is_some_and(serde_json::Value::is_null)
            );
        }
        let plain = json["plain"].as_object().unwrap();
        assert!(!plain.contains_key("all_open_ms") && !plain.contains_key("store"));
        assert!(json["guarded"].get("store").is_none());
        assert_eq!(json["shared"]["store"]["degraded"], true);
        assert_eq!(json["shared"]["store"]["away_ms"], 1500.0);
    }

    #[tokio::test]
    async fn the_text_says_when_the_store_was_away_and_why() {
        let mut report = storm();
        let text = report.text();
        assert!(
            text.contains("DEGRADED: for 1.5 s") && text.contains("it is gone"),
            "{text}"
        );
        report.shared.as_mut().unwrap().store.as_mut().unwrap().away = Duration::ZERO;
        assert!(!report.text().contains("DEGRADED"));
    }

    #[tokio::test]
    async fn the_text_says_when_the_machine_could_not_keep_up() {
        let mut report = storm();
        assert!(!report.text().contains("BUSY"));
        if let Run::Storm { lateness, .. } = &mut report.run {
            *lateness = Duration::from_millis(70);
        }
        assert!(
            report.text().contains("started 70.0 ms late"),
            "{}",
            report.text()
        );
        assert!(
            report
                .json()
                .unwrap()
                .contains("\"start_late_p99_ms\": 70.0")
        );
    }

    #[tokio::test]
    async fn the_phases_stand_in_the_order_of_the_script() {
        let json = storm().json().unwrap();
        let at = Phase::ALL.map(|phase| json.find(&format!("\"{}\"", phase.name())).unwrap());
        assert!(at.is_sorted(), "{json}");
    }

    #[tokio::test]
    async fn the_table_has_a_column_for_each_client_that_ran() {
        let table = storm().table().to_string();
        assert!(
            table.contains("plain")
                && table.contains("guarded")
                && table.contains("time to recover")
        );
        let run = Run::Url {
            url: "http://localhost/".to_owned(),
            rate: 10,
        };
        let alone = Report {
            run,
            interrupted: true,
            plain: None,
            guarded: side(None, None),
            shared: None,
        };
        let text = alone.text();
        assert!(
            !text.contains("plain") && !text.contains("shared") && text.contains("Interrupted"),
            "{text}"
        );
    }
}
