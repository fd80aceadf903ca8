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

script!(LEASE, "header.lua", "time.lua", "expire.lua", "lease.lua");
script!(
    FILL,
    "header.lua",
    "fill_check.lua",
    "time.lua",
    "store.lua",
    "fill.lua"
);
script!(EXTEND, "header.lua", "time.lua", "extend.lua");
script!(RELEASE, "header.lua", "release.lua");
script!(
    PUT,
    "header.lua",
    "time.lua",
    "expire.lua",
    "store.lua",
    "put.lua"
);
script!(
    INVALIDATE,
    "header.lua",
    "time.lua",
    "expire.lua",
    "leave.lua",
    "invalidate.lua"
);
script!(
    BEGIN_WRITE,
    "header.lua",
    "time.lua",
    "expire.lua",
    "leave.lua",
    "begin_write.lua"
);
script!(
    END_WRITE,
    "header.lua",
    "time.lua",
    "store.lua",
    "end_write_check.lua",
    "expire.lua",
    "leave.lua",
    "end_write.lua"
);
script!(GENERATIONS, "tags.lua", "generations.lua");
script!(INVALIDATE_TAG, "tags.lua", "invalidate_tag.lua");
