export type { Tool, ToolResult } from './tool';
export { ToolSecrets } from './tool-secrets';
export { type StoredToolSource, type ToolSource } from './tool-source';
export { ToolSources } from './tool-sources';
export type { SourceFailure, Toolbox } from './toolbox';
export { ToolsModule } from './tools.module';
