/** What each token looks at, laid over the part of the picture that the encoder sees. */
import { useEffect, useRef } from "preact/hooks";
import { strings } from "./strings.js";

export interface Maps {
  data: Float32Array;
  height: number;
  width: number;
}

export function HeatMaps({ maps, picture, resize }: { maps: Maps; picture: string; resize: "shortest" | "squash" }) {
  const size = maps.height * maps.width;
  const count = maps.data.length / size;
  return (
    <details class="maps" open>
      <summary>{strings.maps}</summary>
      <p class="note">{strings.mapsHint}</p>
      <ol>
        {Array.from({ length: count }, (_, index) => (
          <li key={index}>
            <figure>
              <div class="layers">
                <img src={picture} alt="" class={resize} />
                <HeatMap map={maps.data.subarray(index * size, (index + 1) * size)} height={maps.height} width={maps.width} label={strings.mapAlt(index + 1)} />
              </div>
              <figcaption>{strings.map(index + 1)}</figcaption>
            </figure>
          </li>
        ))}
      </ol>
    </details>
  );
}

function HeatMap({ map, height, width, label }: { map: Float32Array; height: number; width: number; label: string }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const context = canvas.current!.getContext("2d")!;
    const most = map.reduce((a, b) => Math.max(a, b), 1e-12);
    const image = context.createImageData(width, height);
    map.forEach((weight, index) => {
      const share = weight / most;
      image.data.set([235, 94 + 100 * (1 - share), 40, 225 * share ** 0.8], 4 * index);
    });
    context.putImageData(image, 0, 0);
  }, [map]);
  return <canvas ref={canvas} width={width} height={height} role="img" aria-label={label} />;
}
