//! The shares of regions: never more than the whole, whatever happens to the ledgers and on the way between them; never
//! more admitted than the limit allows; and where the demand is, in the end.

mod handle;
mod tokens;
mod turns;
mod world;

use super::*;
