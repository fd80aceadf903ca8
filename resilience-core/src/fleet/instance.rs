//! Names of instances.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

/// A name that no other handle has, in this process or another: the configured name, if any, and 64 random bits drawn
/// from the operating system's entropy.
pub(crate) fn instance_id(name: Option<&str>) -> Arc<str> {
    // Not `fastrand`: its generator can be seeded by the application, and then two processes draw the same name.
    let random = RandomState::new().hash_one(std::process::id());
    match name {
        Some(name) => format!("{name}-{random:016x}").into(),
        None => format!("{random:016x}").into(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn two_handles_never_have_one_name_even_under_one_seed() {
        let names: HashSet<_> = (0..1_000)
            .map(|_| {
                fastrand::seed(7);
                instance_id(Some("pod-7"))
            })
            .collect();
        assert_eq!(names.len(), 1_000);
        assert!(names.iter().all(|name| name.starts_with("pod-7-")));
    }
}
