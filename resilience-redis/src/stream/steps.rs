//! The scripts.

use std::sync::LazyLock;

use crate::script::Script;

macro_rules! script {
    ($id:ident, $($file:literal),+) => {
        pub(super) static $id: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!($(include_str!($file), "\n"),+))
        });
    };
}

// About a stream.
script!(PUBLISH, "store.lua", "header.lua", "publish.lua");
script!(KEEP, "header.lua", "keep.lua");
script!(PEEK, "header.lua", "peek.lua");
script!(TRIM, "header.lua", "count.lua", "trim.lua");
script!(STATE, "header.lua", "count.lua", "state.lua");
// About several.
script!(READ, "read.lua");
// About a group.
script!(JOIN, "header.lua", "group.lua", "join.lua");
script!(LEAVE, "header.lua", "group.lua", "leave.lua");
script!(CLAIM, "header.lua", "group.lua", "claim.lua");
script!(
    EXTEND,
    "header.lua",
    "group.lua",
    "hold.lua",
    "lease.lua",
    "extend.lua"
);
script!(
    BEGIN,
    "header.lua",
    "group.lua",
    "hold.lua",
    "lease.lua",
    "effect.lua",
    "begin.lua"
);
script!(
    SETTLE,
    "acknowledge.lua",
    "complete.lua",
    "header.lua",
    "group.lua",
    "hold.lua",
    "effect.lua",
    "settle.lua"
);
script!(SEEK, "header.lua", "group.lua", "seek.lua");
script!(PAUSE, "header.lua", "group.lua", "pause.lua");
script!(PENDING, "header.lua", "group.lua", "pending.lua");
script!(LETTERS, "header.lua", "group.lua", "letters.lua");
script!(REDRIVE, "header.lua", "group.lua", "redrive.lua");
script!(REMOVE, "header.lua", "group.lua", "remove.lua");
