//! What a stack consists of.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::visit;
use crate::error::Pattern;

/// Names of the settings that the [rules](super::Rule) read.
pub(crate) mod setting {
    /// The time limit of a deadline.
    pub(crate) const AFTER: &str = "after";
    /// A deadline that depends on the request.
    pub(crate) const PER_REQUEST: &str = "per_request";
    /// A deadline that is meant for one attempt.
    pub(crate) const PER_ATTEMPT: &str = "per_attempt";
    pub(crate) const MAX_ATTEMPTS: &str = "max_attempts";
    /// The number of calls that may wait.
    pub(crate) const QUEUE: &str = "queue";
    /// One limit or breaker per key.
    pub(crate) const PER_KEY: &str = "per_key";
    /// Its state is shared by a fleet.
    pub(crate) const FLEET: &str = "fleet";
}

/// The layers of a stack, outermost first. From [`describe`](super::describe).
///
/// `Display` prints one line per layer, indented by the number of layers around it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Description {
    parts: Vec<Part>,
}

impl Description {
    pub(super) const fn new(parts: Vec<Part>) -> Self {
        Self { parts }
    }

    /// The layers, outermost first. Of a stack that branches, each branch follows the layer around it; see
    /// [`Part::depth`].
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Enters all of its layers in the description that is being made, if one is: as [`enter`](super::enter), for a service
    /// that hides the stack it wraps and has kept its description.
    pub fn enter(&self) {
        visit::extend(&self.parts);
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            writeln!(f, "{:indent$}{part}", "", indent = 2 * part.depth)?;
        }
        Ok(())
    }
}

/// One layer of a stack.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    #[serde(serialize_with = "pattern")]
    pattern: Pattern,
    name: Arc<str>,
    #[serde(serialize_with = "settings")]
    settings: Vec<(&'static str, Setting)>,
    pub(super) depth: usize,
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Setting {
    /// It is on.
    On(bool),
    /// A number of calls, attempts or tokens.
    Count(u64),
    /// A share, from 0 to 1.
    Share(f64),
    /// A time. Serialized in seconds.
    #[serde(serialize_with = "seconds")]
    Time(Duration),
}

impl Part {
    /// A layer of `pattern` called `name` (empty if it has none), without settings.
    #[must_use]
    pub fn new(pattern: Pattern, name: impl Into<Arc<str>>) -> Self {
        Self {
            pattern,
            name: name.into(),
            settings: Vec::new(),
            depth: 0,
        }
    }

    /// Adds a setting.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: impl Into<Setting>) -> Self {
        self.settings.push((name, value.into()));
        self
    }

    /// Adds a setting if there is one.
    #[must_use]
    pub fn set_some(self, name: &'static str, value: Option<impl Into<Setting>>) -> Self {
        match value {
            Some(value) => self.set(name, value),
            None => self,
        }
    }

    /// The pattern.
    #[must_use]
    pub const fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// The name that its handle was built with. Empty if it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings that matter for the order, with their names.
    #[must_use]
    pub fn settings(&self) -> &[(&'static str, Setting)] {
        &self.settings
    }

    /// The value of the setting `name`.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&Setting> {
        let found = self.settings.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value)
    }

    /// The number of layers of the description around it.
    #[must_use]
    pub const fn depth(&self) -> usize {
        self.depth
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.pattern)?;
        if !self.name.is_empty() {
            write!(f, " `{}`", self.name)?;
        }
        for (at, (name, value)) in self.settings.iter().enumerate() {
            f.write_str(if at == 0 { " (" } else { ", " })?;
            match value {
                Setting::On(true) => write!(f, "{name}"),
                Setting::On(false) => write!(f, "no {name}"),
                Setting::Count(count) => write!(f, "{name} {count}"),
                Setting::Share(share) => write!(f, "{name} {share}"),
                Setting::Time(time) => write!(f, "{name} {time:?}"),
            }?;
        }
        f.write_str(if self.settings.is_empty() { "" } else { ")" })
    }
}

impl From<bool> for Setting {
    fn from(on: bool) -> Self {
        Self::On(on)
    }
}

impl From<u32> for Setting {
    fn from(count: u32) -> Self {
        Self::Count(count.into())
    }
}

impl From<u64> for Setting {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Setting {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<f64> for Setting {
    fn from(share: f64) -> Self {
        Self::Share(share)
    }
}

impl From<Duration> for Setting {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

fn pattern<S: Serializer>(pattern: &Pattern, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(pattern.as_str())
}

fn settings<S: Serializer>(
    settings: &[(&'static str, Setting)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(settings.len()))?;
    for (name, value) in settings {
        map.serialize_entry(name, value)?;
    }
    map.end()
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}
