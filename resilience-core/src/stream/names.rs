//! Names of streams and groups, as builders check them.

use std::sync::Arc;

use super::broker::validate::MAX_NAME;
use crate::error::InvalidConfig;

pub(super) fn check_name(field: &'static str, name: &Arc<str>) -> Result<(), InvalidConfig> {
    if (1..=MAX_NAME).contains(&name.len()) {
        return Ok(());
    }
    Err(InvalidConfig::new(field, name, "must have 1 to 255 bytes"))
}
