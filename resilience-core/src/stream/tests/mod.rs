#[cfg(feature = "testing")]
mod conformance;
