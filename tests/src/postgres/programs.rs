//! Where the server's programs are, and who may run them.

use std::{
    env, fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::geteuid;

/// The folder that holds both `postgres` and `initdb`, or the folders that were tried.
pub(super) fn find_programs() -> Result<PathBuf, Vec<PathBuf>> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut tried: Vec<PathBuf> = env::split_paths(&path).collect();
    tried.extend(told_by_pg_config());
    for (parent, below) in PACKAGED {
        let mut versions: Vec<_> = fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        // The newest first.
        versions.sort_by_key(|version| std::cmp::Reverse(version_number(&version.path())));
        tried.extend(
            versions
                .into_iter()
                .map(|version| version.path().join(below)),
        );
    }
    match tried
        .iter()
        .find(|folder| folder.join("postgres").is_file() && folder.join("initdb").is_file())
    {
        Some(found) => Ok(found.clone()),
        None => Err(tried),
    }
}

/// Where distributions put a version each: Debian and Ubuntu, Alpine, Red Hat (PGDG), Homebrew on ARM and Intel.
const PACKAGED: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", "bin"),
    ("/usr/libexec", ""),
    ("/usr", "bin"),
    ("/opt/homebrew/opt", "bin"),
    ("/usr/local/opt", "bin"),
];

/// The message on a machine without PostgreSQL.
pub(super) fn how_to_install(tried: &[PathBuf]) -> String {
    let tried: Vec<_> = tried
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    format!(
        "this test needs PostgreSQL's server programs (`postgres` and `initdb`), and they are not there.\n\
         Install them with `tests/setup.sh`, or by hand:\n\
         \x20   Debian, Ubuntu:  apt-get install postgresql\n\
         \x20   Fedora, Red Hat: dnf install postgresql-server\n\
         \x20   Alpine:          apk add postgresql\n\
         \x20   macOS:           brew install postgresql\n\
         No service needs to run: the test starts its own. Looked in: {}",
        tried.join(", ")
    )
}

fn told_by_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config")
        .arg("--bindir")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// `postgresql@16`, `pgsql-16`, `16`: 16.
fn version_number(folder: &Path) -> u32 {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let digits = name
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    digits.parse().unwrap_or(0)
}

/// The user that the server runs as when we are root, which PostgreSQL refuses to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    pub(crate) fn if_we_are_root() -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let nobody = users.lines().find(|line| line.starts_with("nobody:"));
        let mut fields = nobody
            .unwrap_or_default()
            .split(':')
            .skip(2)
            .map(str::parse);
        match (fields.next(), fields.next()) {
            (Some(Ok(user)), Some(Ok(group))) => Some(Self { user, group }),
            _ => panic!(
                "PostgreSQL refuses to run as root, and there is no user `nobody` to run it as"
            ),
        }
    }
}

/// A command that runs as `owner`, if there is one; supplementary groups are dropped with the user.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>, owner: Option<Owner>) -> Command {
    let mut command = Command::new(program);
    if let Some(Owner { user, group }) = owner {
        command.uid(user).gid(group);
    }
    command
}

/// Gives a directory to `owner`, if there is one.
pub(crate) fn give_to(owner: Option<Owner>, directory: &Path) {
    if let Some(Owner { user, group }) = owner {
        chown(directory, Some(user), Some(group)).expect("a directory for the server's user");
    }
}

/// Makes the data directory.
pub(super) fn init(programs: &Path, directory: &Path, owner: Option<Owner>) {
    let output = command(programs.join("initdb"), owner)
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "-N",
            "-D",
        ])
        .arg(directory.join("data"))
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .expect("initdb runs");
    assert!(
        output.status.success(),
        "initdb failed in {}:\n{}{}",
        directory.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
