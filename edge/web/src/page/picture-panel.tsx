/** How a picture comes in: upload, drop, paste, camera, drawing. */
import { useEffect, useRef, useState } from "preact/hooks";
import { Camera } from "./camera.js";
import { DrawingArea } from "./draw.js";
import { strings } from "./strings.js";

export type SourceKind = "upload" | "camera" | "draw";

interface Props {
  kind: SourceKind;
  onKind: (kind: SourceKind) => void;
  preview: string;
  startedFrom: string;
  onPicture: (picture: Blob) => void;
  onDrawn: (picture: Blob | null) => void;
  onError: (error: unknown) => void;
}

const KINDS: SourceKind[] = ["upload", "camera", "draw"];

export function PicturePanel({ kind, onKind, preview, startedFrom, onPicture, onDrawn, onError }: Props) {
  const input = useRef<HTMLInputElement>(null);
  const [over, setOver] = useState(false);
  useEffect(() => {
    const paste = (event: ClipboardEvent) => {
      const file = [...(event.clipboardData?.files ?? [])][0];
      if (file) {
        event.preventDefault();
        onPicture(file);
      }
    };
    document.addEventListener("paste", paste);
    return () => document.removeEventListener("paste", paste);
  }, [onPicture]);
  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    const file = event.dataTransfer?.files[0];
    if (file) onPicture(file);
  };
  return (
    <section
      class={over ? "panel over" : "panel"} aria-labelledby="picture-title"
      onDragOver={(event) => { event.preventDefault(); setOver(true); }} onDragLeave={() => setOver(false)} onDrop={drop}
    >
      <h2 id="picture-title">{strings.picture}</h2>
      <div class="segments" role="group" aria-label={strings.sources}>
        {KINDS.map((each) => (
          <button type="button" key={each} aria-pressed={kind === each} onClick={() => onKind(each)}>{strings[each]}</button>
        ))}
      </div>
      {kind === "upload" && (
        <div class="upload">
          <div class={preview ? "frame filled" : "frame"}>
            {preview ? <img src={preview} alt={strings.pictureAlt} /> : <p class="hint">{strings.uploadHint}</p>}
          </div>
          {startedFrom && <p class="note">{strings.startedFrom(startedFrom)}</p>}
          <button type="button" class={preview ? "quiet" : "primary"} onClick={() => input.current!.click()}>{strings.choose}</button>
          <input
            ref={input} type="file" accept="image/*,.heic,.heif" hidden tabIndex={-1} aria-hidden="true"
            onChange={(event) => {
              const file = event.currentTarget.files?.[0];
              event.currentTarget.value = "";
              if (file) onPicture(file);
            }}
          />
        </div>
      )}
      {kind === "camera" && <Camera onPicture={onPicture} onError={onError} />}
      {kind === "draw" && (
        <DrawingArea onDrawn={(canvas) => (canvas ? canvas.toBlob((blob) => onDrawn(blob)) : onDrawn(null))} />
      )}
    </section>
  );
}
