//! What is to be seen while the storm runs: a picture redrawn in place on a terminal, one line a second elsewhere.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use crossterm::{
    cursor::{Hide, MoveToPreviousLine, Show},
    queue,
    style::{Color, Print, ResetColor, SetForegroundColor},
    terminal::{self, Clear, ClearType},
};

use resilience_core::breaker::State;

use crate::{
    script::{Phase, Script},
    stats::Live,
};

/// How often a terminal is redrawn.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a line is logged.
const LOG: Duration = Duration::from_secs(1);
/// How many of the latest events the picture shows.
const NEWS: usize = 5;

/// All there is to show at one moment.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) now: Duration,
    /// None with the user's own upstream.
    pub(crate) script: Option<Script>,
    pub(crate) sides: Vec<Side>,
    /// What has happened so far, oldest first.
    pub(crate) news: Vec<String>,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) live: Live,
    pub(crate) retries: u64,
    /// Requests that its upstream had to serve or refuse.
    pub(crate) upstream: Option<u64>,
    /// The states of its breakers, one for each instance.
    pub(crate) breakers: Vec<State>,
}

/// Where scenes are shown.
#[derive(Debug)]
pub(crate) enum View {
    /// On a terminal, in place.
    Screen(Screen),
    /// Line by line.
    Log(Log),
}

impl View {
    /// A picture if stdout is a terminal and lines were not asked for. With `json`, stdout belongs to the document
    /// and lines go to stderr.
    pub(crate) fn choose(plain: bool, json: bool) -> Self {
        if plain || json || !io::stdout().is_terminal() {
            Self::Log(Log {
                to_stderr: json,
                told: 0,
            })
        } else {
            Self::Screen(Screen::open())
        }
    }

    /// How long to wait between two scenes.
    pub(crate) const fn pace(&self) -> Duration {
        match self {
            Self::Screen(_) => REDRAW,
            Self::Log(_) => LOG,
        }
    }

    /// Shows `scene`. An output that has gone away (a closed pipe) does not stop the run.
    pub(crate) fn show(&mut self, scene: &Scene) {
        let _ = match self {
            Self::Screen(screen) => screen.draw(&picture(scene)),
            Self::Log(log) => log.tell(scene),
        };
    }
}

/// The lines of a picture that stands at the bottom of a terminal. The cursor comes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Screen {
    drawn: u16,
}

impl Screen {
    fn open() -> Self {
        let _ = queue!(io::stdout(), Hide);
        Self { drawn: 0 }
    }

    fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        // A terminal that does not know its size says that it has none.
        let (width, height) = match terminal::size() {
            Ok((width, height)) if width > 0 && height > 0 => (width, height),
            _ => (80, 24),
        };
        let mut out = io::stdout().lock();
        if self.drawn > 0 {
            queue!(out, MoveToPreviousLine(self.drawn))?;
        }
        self.drawn = 0;
        // What does not fit would scroll away and be drawn again below.
        for line in lines.iter().take(usize::from(height.saturating_sub(1))) {
            let text: String = line.text.chars().take(width.into()).collect();
            queue!(out, Clear(ClearType::CurrentLine))?;
            match line.color {
                Some(color) => queue!(out, SetForegroundColor(color), Print(text), ResetColor)?,
                None => queue!(out, Print(text))?,
            }
            queue!(out, Print("\n"))?;
            self.drawn += 1;
        }
        queue!(out, Clear(ClearType::FromCursorDown))?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout();
        let _ = queue!(out, ResetColor, Show);
        let _ = out.flush();
    }
}

/// One line of the picture.
#[derive(Debug)]
struct Line {
    text: String,
    color: Option<Color>,
}

impl From<String> for Line {
    fn from(text: String) -> Self {
        Self { text, color: None }
    }
}

fn colored(color: Color, text: String) -> Line {
    Line {
        text,
        color: Some(color),
    }
}

fn picture(scene: &Scene) -> Vec<Line> {
    let mut lines = Vec::new();
    if let Some(script) = scene.script {
        let phase = script.at(scene.now);
        lines.push(progress(scene.now, script.total()).into());
        lines.push(signpost(phase).into());
        let weather = match phase {
            Phase::Healthy | Phase::Back => Color::Green,
            Phase::Slow | Phase::Failing => Color::Yellow,
            Phase::Hanging | Phase::Down => Color::Red,
        };
        lines.push(colored(weather, format!("The upstream {}.", phase.story())));
    } else {
        lines.push(format!("{:.1} s", scene.now.as_secs_f64()).into());
    }
    let mut states = scene.sides.iter().flat_map(|side| &side.breakers);
    let calm = states.all(|state| *state == State::Closed);
    let color = if calm { Color::Green } else { Color::Red };
    lines.push(colored(color, breakers(&scene.sides)));
    lines.push(String::new().into());
    lines.push(HEADER.to_owned().into());
    lines.extend(scene.sides.iter().map(|side| row(side).into()));
    lines.push(String::new().into());
    let skipped = scene.news.len().saturating_sub(NEWS);
    lines.extend(scene.news.iter().skip(skipped).cloned().map(Line::from));
    lines
}

/// The breakers of all clients that have some, in short.
fn breakers(sides: &[Side]) -> String {
    let guarded: Vec<_> = sides
        .iter()
        .filter(|side| !side.breakers.is_empty())
        .collect();
    match guarded[..] {
        [one] => format!("breaker {}", states(&one.breakers)),
        _ => {
            let each = guarded
                .iter()
                .map(|side| format!("{} {}", side.name, states(&side.breakers)));
            format!("breakers: {}", each.collect::<Vec<_>>().join(", "))
        }
    }
}

/// "closed" if all are; else how many are what.
fn states(all: &[State]) -> String {
    let name = |state: State| state.as_str().replace('_', "-");
    let mut counts: Vec<(State, usize)> = Vec::new();
    for &state in all {
        match counts.iter_mut().find(|(known, _)| *known == state) {
            Some((_, count)) => *count += 1,
            None => counts.push((state, 1)),
        }
    }
    match counts[..] {
        [(state, _)] => name(state),
        _ => {
            let each = counts
                .iter()
                .map(|&(state, count)| format!("{count} {}", name(state)));
            each.collect::<Vec<_>>().join(" + ")
        }
    }
}

fn progress(now: Duration, total: Duration) -> String {
    const WIDTH: usize = 40;
    let share = (now.as_secs_f64() / total.as_secs_f64()).min(1.0);
    let done = (0..WIDTH)
        .filter(|&n| (n as f64) < share * WIDTH as f64)
        .count();
    format!(
        "Storm {}{} {:.1} of {:.0} s",
        "█".repeat(done),
        "░".repeat(WIDTH - done),
        now.min(total).as_secs_f64(),
        total.as_secs_f64(),
    )
}

fn signpost(now: Phase) -> String {
    let name = |phase: Phase| match phase == now {
        true => format!("[{}]", phase.name()),
        false => phase.name().to_owned(),
    };
    Phase::ALL.map(name).join(" > ")
}

const HEADER: &str =
    "        in flight  last second      ok   failed  rejected  retries upstream got";

fn row(side: &Side) -> String {
    format!(
        "{:<7} {:>9} {:>12} {:>7} {:>8} {:>9} {:>8} {:>12}",
        side.name,
        side.live.in_flight,
        percent(side.live.recent) + " ok",
        side.live.ok,
        side.live.failed,
        side.live.rejected,
        side.retries,
        side.upstream
            .map_or_else(|| "-".to_owned(), |served| served.to_string()),
    )
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(
        || "- %".to_owned(),
        |share| format!("{:.0} %", share * 100.0),
    )
}

/// Where lines are logged, and how many events have been told.
#[derive(Debug)]
pub(crate) struct Log {
    to_stderr: bool,
    told: usize,
}

impl Log {
    fn tell(&mut self, scene: &Scene) -> io::Result<()> {
        let mut text = String::new();
        for news in scene.news.iter().skip(self.told) {
            let _ = writeln!(text, "{news}");
        }
        self.told = scene.news.len();
        let _ = writeln!(text, "{}", log_line(scene));
        if self.to_stderr {
            io::stderr().write_all(text.as_bytes())
        } else {
            io::stdout().write_all(text.as_bytes())
        }
    }
}

fn log_line(scene: &Scene) -> String {
    let mut line = format!("{:>5.1} s", scene.now.as_secs_f64());
    if let Some(script) = scene.script {
        let _ = write!(line, "  {:<7}", script.at(scene.now).name());
    }
    let _ = write!(line, "  {}", breakers(&scene.sides));
    for side in &scene.sides {
        let Live {
            in_flight,
            rejected,
            recent,
            ..
        } = side.live;
        let (name, retries, recent) = (side.name, side.retries, percent(recent));
        let _ = write!(
            line,
            "  | {name}: {recent} ok, {in_flight} in flight, {retries} retries, {rejected} rejected"
        );
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> Scene {
        let live = Live {
            in_flight: 3,
            ok: 10,
            failed: 4,
            rejected: 5,
            recent: Some(0.981),
        };
        let side = |name, breakers: &[State]| Side {
            name,
            live,
            retries: 12,
            upstream: Some(99),
            breakers: breakers.to_vec(),
        };
        Scene {
            now: Duration::from_secs(8),
            script: Some(Script::lasting(Duration::from_secs(19))),
            sides: vec![
                side("plain", &[]),
                side("guarded", &[State::Closed, State::Open, State::Closed]),
                side("shared", &[State::HalfOpen; 3]),
            ],
            news: (0..9).map(|n| format!("event {n}")).collect(),
        }
    }

    #[test]
    fn the_picture_shows_phase_breakers_and_all_clients_and_the_latest_events() {
        let lines = picture(&scene());
        let text = lines
            .iter()
            .fold(String::new(), |text, line| text + &line.text + "\n");
        for part in [
            "[failing]",
            "503",
            "guarded 2 closed + 1 open, shared half-open",
            "98 % ok",
            "99",
            "event 8",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("event 3"), "only the latest {NEWS}:\n{text}");
        assert!(
            lines.iter().all(|line| line.text.chars().count() < 80),
            "{text}"
        );
    }

    #[test]
    fn a_log_line_is_one_line_and_says_the_same() {
        let line = log_line(&scene());
        for part in [
            "8.0 s",
            "failing",
            "breakers: guarded 2 closed + 1 open, shared half-open",
            "98 % ok",
            "3 in flight",
            "12 retries",
            "5 rejected",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains('\n'));
    }

    #[test]
    fn a_client_alone_has_a_breaker_and_no_breakers() {
        let mut scene = scene();
        scene.sides.drain(..2);
        assert_eq!(breakers(&scene.sides), "breaker half-open");
    }

    #[test]
    fn an_event_is_logged_once() {
        let mut log = Log {
            to_stderr: true,
            told: 0,
        };
        log.tell(&scene()).unwrap();
        assert_eq!(log.told, 9);
    }
}
