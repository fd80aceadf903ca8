//! What a connection can be made for beside commands.

use futures_util::future::BoxFuture;
use redis::PushInfo;

use crate::transport::Transport;

/// The use of a connection that depends on state of the server that goes with it, such as the list of keys that were read.
/// Called on the connection's own tasks and on those of callers: must be quick, except for [`prepare`](Self::prepare).
pub(crate) trait Session: Send + Sync {
    /// Prepares a new connection, within a few budgets, before a command of any caller is sent over it. With an error it is not
    /// used, and another one is made.
    fn prepare<'a>(&'a self, transport: &'a mut Transport) -> BoxFuture<'a, Result<(), String>>;

    /// Connection `number`, the last one that was prepared, is in use.
    fn began(&self, number: u64);

    /// Connection `number` is lost, or about to be taken out of use. May be called more than once, for an earlier connection
    /// too, and before [`began`](Self::began), which has no effect then.
    fn ended(&self, number: u64);

    /// The server pushed something.
    fn pushed(&self, push: &PushInfo);
}
