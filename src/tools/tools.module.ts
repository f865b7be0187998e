import { Global, Module } from '@nestjs/common';
import { ToolNetwork } from './tool-network';
import { ToolSources } from './tool-sources';

/** Tools: what an assistant may call besides its model. Owns no tables; a version's `tools` are its assistant's. */
@Global()
@Module({ providers: [ToolNetwork, ToolSources], exports: [ToolSources] })
export class ToolsModule {}
