import { defineConfig } from "vite";

// `npm run dev` shows changes at once; the API comes from a server that runs already.
const server = process.env["STOCKADE_URL"] ?? "http://127.0.0.1:8080";

export default defineConfig({
  server: { host: "127.0.0.1", proxy: { "/api": { target: server, ws: true } } },
  build: {
    outDir: "../src/stockade/web/assets",
    emptyOutDir: true,
    target: ["chrome123", "edge123", "firefox121", "safari17.5"],
    // A data: address would need an exception in the Content-Security-Policy.
    assetsInlineLimit: 0,
    // Every browser we build for knows how to preload modules.
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    chunkSizeWarningLimit: 700,
  },
});
