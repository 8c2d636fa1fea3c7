//! A run as a picture: success and attempts per second over time, one line for each who is compared.

use std::fmt::Write;

use crate::clock::SECOND;
use crate::services::{END, FAULT};

/// Someone's run: for each half second the part of the requests that succeeded, and the attempts per second.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) course: Vec<(f64, f64)>,
}

const WIDTH: f64 = 820.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 640.0;
const HEIGHT: f64 = 190.0;
/// Told apart also by those who do not see all colours (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7"];

/// The picture as SVG.
pub(crate) fn svg(title: &str, lines: &[Line]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 560\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"560\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\">{title}</text>\n"
    );
    let most = lines.iter().flat_map(|line| &line.course).map(|(_, rate)| *rate).fold(1.0, f64::max);
    let thousands = (most / 5_000.0).ceil() * 5_000.0;
    panel(&mut svg, 60.0, "requests that succeed, %", 100.0, lines, |(success, _)| success * 100.0);
    panel(
        &mut svg,
        325.0,
        "attempts per second at the deepest service (1000 requests per second at the front)",
        thousands,
        lines,
        |(_, rate)| rate,
    );
    for (at, line) in lines.iter().enumerate() {
        let (y, colour) = (80.0 + 24.0 * at as f64, COLOURS[at % COLOURS.len()]);
        let text = RIGHT + 44.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{} {y}h24\" stroke=\"{colour}\" stroke-width=\"2.5\"/><text x=\"{text}\" y=\"{}\">{}</text>",
            RIGHT + 14.0,
            y + 4.0,
            line.name
        );
    }
    svg + "</svg>\n"
}

/// One diagram whose upper edge is at `top`.
fn panel(svg: &mut String, top: f64, name: &str, most: f64, lines: &[Line], value: impl Fn((f64, f64)) -> f64) {
    let (end, bottom) = (END as f64 / SECOND as f64, top + HEIGHT);
    let x = |seconds: f64| LEFT + (RIGHT - LEFT) * seconds / end;
    let y = |value: f64| bottom - HEIGHT * value / most;
    let (from, to) = (x(FAULT.start as f64 / SECOND as f64), x(FAULT.end as f64 / SECOND as f64));
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">{name}</text>", top - 8.0);
    let _ = writeln!(svg, "<rect x=\"{from}\" y=\"{top}\" width=\"{}\" height=\"{HEIGHT}\" fill=\"#eee\"/>", to - from);
    for part in 0..=5 {
        let (at, value) = (y(most * f64::from(part) / 5.0), most * f64::from(part) / 5.0);
        let _ = writeln!(svg, "<path d=\"M{LEFT} {at}H{RIGHT}\" stroke=\"#ccc\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{value}</text>", LEFT - 8.0, at + 4.0);
    }
    for seconds in (0..=END / SECOND).step_by(5) {
        let at = x(seconds as f64);
        let _ = writeln!(svg, "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{seconds} s</text>", bottom + 18.0);
    }
    for (at, line) in lines.iter().enumerate() {
        let mut path = String::new();
        for (half, point) in line.course.iter().enumerate() {
            let (x, y) = (x((half as f64 + 0.5) / 2.0), y(value(*point)));
            let _ = write!(path, "{}{x:.1} {y:.1}", if half == 0 { 'M' } else { 'L' });
        }
        let colour = COLOURS[at % COLOURS.len()];
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
    }
}
