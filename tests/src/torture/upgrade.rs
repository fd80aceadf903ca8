//! A rolling upgrade: processes of an earlier revision and of this one on one Redis, with the same keys.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tokio::time::sleep;

use super::mixed::{Fleet, Mixed};
use crate::redis::RedisServer;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// The commit that the former processes are of.
    pub from: String,
    /// Processes that were replaced, by newer and by older ones.
    pub replaced: usize,
    /// What the fleet did meanwhile.
    pub fleet: Mixed,
}

const PROCESSES: usize = 4;

/// How processes are replaced.
#[derive(Clone, Copy, Debug)]
pub struct Rollout {
    /// Time between two of them.
    pub apart: Duration,
    /// False: each has keys of its own in Redis, to see that what this does is noticed.
    pub shares: bool,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            apart: Duration::from_secs(1),
            shares: true,
        }
    }
}

/// Replaces the processes one by one by those of `program`, the binary `torture` of this revision, then back by those of
/// `former`, as a rollout that is undone, and forward again. The dependency fails while both are there.
///
/// # Errors
/// If the earlier program does not know what to do.
///
/// # Panics
/// If the server does not start.
pub async fn upgrade(program: &Path, former: &Former, rollout: Rollout) -> Result<Upgrade, String> {
    let server = tokio::task::spawn_blocking(RedisServer::start).await;
    let server = server.expect("a Redis");
    let mut fleet = Fleet::open(server.url(), rollout.shares).await;
    for _ in 0..PROCESSES {
        let started = fleet.start(&former.program).await;
        started.map_err(|why| {
            format!("{why}. Name a later revision: `torture only upgrade REVISION`")
        })?;
    }
    fleet.dependency_is(true).await;
    let mut replaced = 0;
    for next in [program, &former.program, program] {
        for slot in 0..PROCESSES {
            sleep(rollout.apart).await;
            fleet.replace(slot, next).await?;
            replaced += 1;
            if slot == PROCESSES / 2 {
                fleet.dependency_is(false).await;
                fleet.dependency_is(true).await;
            }
        }
    }
    sleep(rollout.apart).await;
    let fleet = fleet.end(1).await;
    Ok(Upgrade {
        from: former.commit.clone(),
        replaced,
        fleet,
    })
}

/// The program of an earlier revision.
#[derive(Clone, Debug)]
pub struct Former {
    /// The commit.
    pub commit: String,
    /// Its binary `torture`.
    pub program: PathBuf,
}

impl Former {
    /// Checks `revision` out beside this one, under `target/upgrade`, and builds it there with the profile of this program.
    ///
    /// # Errors
    /// If git does not know the revision, or it does not compile.
    pub fn build(revision: &str) -> Result<Self, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let root = root.canonicalize().map_err(|why| why.to_string())?;
        let git = |words: &[&str]| {
            let mut git = Command::new("git");
            git.arg("-C").arg(&root).args(words);
            output(&mut git)
        };
        let commit = git(&[
            "rev-parse",
            "--verify",
            "--end-of-options",
            &format!("{revision}^{{commit}}"),
        ])?;
        let folder = root.join("target/upgrade");
        let sources = folder.join("sources");
        let path = sources.display().to_string();
        // A run that was cut off may have left it.
        let _ = git(&["worktree", "remove", "--force", &path]);
        git(&["worktree", "add", "--force", "--detach", &path, &commit])?;
        let built = Self::compile(&sources, &folder.join("target"));
        let _ = git(&["worktree", "remove", "--force", &path]);
        built.map(|program| Self { commit, program })
    }

    fn compile(sources: &Path, target: &Path) -> Result<PathBuf, String> {
        let (profile, folder) = if cfg!(debug_assertions) {
            ("dev", "debug")
        } else {
            ("release", "release")
        };
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut cargo = Command::new(cargo);
        cargo
            .current_dir(sources)
            .args(["build", "-q", "--locked", "-p", "resilience-tests"])
            .args(["--bin", "torture", "--profile", profile])
            .arg("--target-dir")
            .arg(target);
        output(&mut cargo)?;
        Ok(target.join(folder).join("torture"))
    }
}

/// What a command prints; the error is what it complains of.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|why| format!("{command:?}: {why}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?}: {}", complaint.trim()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.trim().to_owned())
}
