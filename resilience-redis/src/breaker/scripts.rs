//! The scripts of the shared breakers, each a file beside this one.

use std::sync::LazyLock;

use crate::script::Script;

macro_rules! script {
    ($id:ident, $($file:literal),+) => {
        pub(super) static $id: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(
                include_str!("../shown.lua"),
                include_str!("../record_time.lua"),
                include_str!("common.lua"),
                $("\n", include_str!($file)),+
            ))
        });
    };
}

script!(REPORT, "report.lua");
script!(CHANGE, "log.lua", "change.lua");
script!(RESTORE, "log.lua", "restore.lua");
script!(LEASE, "log.lua", "lease.lua");
script!(SETTLE, "settle.lua");
script!(ORDER, "log.lua", "override.lua");
script!(RESET, "log.lua", "reset.lua");
script!(VIEW, "view.lua");
script!(MEMBERS, "members.lua");
script!(READ_LOG, "read_log.lua");
script!(PROBE, "probe.lua");
/// The report's script as a function of its keys and arguments, called once for each breaker.
pub(super) static REPORT_MANY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("../shown.lua"),
        include_str!("../record_time.lua"),
        "local function report(KEYS, ARGV)\n",
        include_str!("common.lua"),
        "\n",
        include_str!("report.lua"),
        "\nend\n",
        include_str!("report_many.lua")
    ))
});
