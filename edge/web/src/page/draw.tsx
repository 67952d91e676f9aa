/** The drawing area: strokes with pressure, undone one by one. */
import getStroke from "perfect-freehand";
import { useEffect, useRef, useState } from "preact/hooks";
import { strings } from "./strings.js";

const SIDE = 512;
const WIDTH = 15;
const PENS = { Black: "#1b1b1b", Red: "#d33131", Yellow: "#f2b824", Green: "#3c9a4c", Blue: "#2f6fd0", Brown: "#8a5a33" };

interface Stroke {
  colour: string;
  points: [number, number, number][];
  hasPressure: boolean;
}

export function DrawingArea({ onDrawn }: { onDrawn: (canvas: HTMLCanvasElement | null) => void }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const current = useRef<Stroke | null>(null);
  const [strokes, setStrokes] = useState<Stroke[]>([]);
  const [colour, setColour] = useState<string>(PENS.Black);
  const touched = useRef(false);

  const paint = (extra?: Stroke | null) => {
    const context = canvas.current!.getContext("2d")!;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, SIDE, SIDE);
    for (const stroke of extra ? [...strokes, extra] : strokes) {
      const outline = getStroke(stroke.points, { size: WIDTH, thinning: 0.5, smoothing: 0.5, streamline: 0.4, simulatePressure: !stroke.hasPressure });
      context.fillStyle = stroke.colour;
      context.beginPath();
      outline.forEach(([x, y], index) => (index ? context.lineTo(x!, y!) : context.moveTo(x!, y!)));
      context.fill();
    }
  };
  useEffect(() => {
    paint();
    if (touched.current) onDrawn(strokes.length ? canvas.current : null);
  }, [strokes]);

  const place = (event: PointerEvent): [number, number, number] => {
    const box = canvas.current!.getBoundingClientRect();
    const scale = SIDE / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale, event.pressure || 0.5];
  };
  const begin = (event: PointerEvent) => {
    event.preventDefault();
    canvas.current!.setPointerCapture(event.pointerId);
    current.current = { colour, points: [place(event)], hasPressure: event.pointerType === "pen" };
    touched.current = true;
    paint(current.current);
  };
  const move = (event: PointerEvent) => {
    if (!current.current) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) current.current.points.push(place(each));
    paint(current.current);
  };
  const end = () => {
    const stroke = current.current;
    current.current = null;
    if (stroke) setStrokes((all) => [...all, stroke]);
  };
  const change = (next: Stroke[]) => {
    touched.current = true;
    setStrokes(next);
  };

  return (
    <div class="drawing">
      <div class="frame">
        <canvas
          ref={canvas} width={SIDE} height={SIDE} role="img" aria-label={strings.canvas}
          onPointerDown={begin} onPointerMove={move} onPointerUp={end} onPointerCancel={end}
        />
        {strokes.length === 0 && <span class="hint" aria-hidden="true">{strings.drawHint}</span>}
      </div>
      <div class="tools">
        <div class="pens" role="group" aria-label={strings.pens}>
          {Object.entries(PENS).map(([name, value]) => (
            <button
              type="button" key={name} class="pen" style={{ "--pen": value }} aria-label={strings.pen(name)}
              aria-pressed={colour === value} onClick={() => setColour(value)}
            />
          ))}
        </div>
        <button type="button" class="quiet" disabled={!strokes.length} onClick={() => change(strokes.slice(0, -1))}>{strings.undo}</button>
        <button type="button" class="quiet" disabled={!strokes.length} onClick={() => change([])}>{strings.clear}</button>
      </div>
    </div>
  );
}
