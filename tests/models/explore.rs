//! Explores a scenario to its end.

use std::{env, fmt::Debug, hash::Hash, time::Duration};

use stateright::{Checker, HasDiscoveries, Model};

/// A scenario that takes longer has not been explored to its end. A few seconds are usual.
const LIMIT: Duration = Duration::from_secs(600);
/// As above, with more of everything; in a release build.
const LONG_LIMIT: Duration = Duration::from_secs(1_200);

/// One with `FULL_COUNTS` set, as `make torture` does: for the budgets of scenarios. Else none.
pub(crate) fn more() -> u8 {
    u8::from(env::var_os("FULL_COUNTS").is_some())
}

/// A scenario that can have a mistake built in.
pub(crate) trait Scenario:
    Model<
        State: Clone + Debug + Hash + PartialEq + Send + Sync,
        Action: Clone + Debug + PartialEq + Send + Sync,
    > + Send
    + Sync
    + 'static
{
    fn has_mistake(&self) -> bool;
}

/// The names of the properties that do not hold. A scenario with a mistake ends with the first one found.
pub(crate) fn explore(name: &str, scenario: impl Scenario) -> Vec<&'static str> {
    let limit = if more() > 0 { LONG_LIMIT } else { LIMIT };
    let start = tokio::time::Instant::now();
    let stop_early = scenario.has_mistake();
    let mut checker = scenario.checker().threads(2);
    if stop_early {
        checker = checker.finish_when(HasDiscoveries::Any);
    }
    let checker = checker.timeout(limit).spawn_bfs().join();
    let took = start.elapsed();
    let found = checker.discoveries();
    for (property, path) in &found {
        println!(
            "{name}: {property:?} is broken by {:#?}",
            path.clone().into_actions()
        );
    }
    println!(
        "{name}: {} states, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        took.as_secs_f64()
    );
    assert!(
        stop_early || (checker.is_done() && took < limit),
        "{name} was not explored to its end"
    );
    found.into_keys().collect()
}

/// Asserts that every property holds.
pub(crate) fn holds(name: &str, scenario: impl Scenario) {
    assert_eq!(explore(name, scenario), Vec::<&str>::new(), "{name}");
}
